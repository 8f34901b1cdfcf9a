package org.meltemi.test.brpc;

import com.baidu.brpc.RpcContext;
import com.baidu.brpc.protocol.BrpcMeta;
import com.baidu.brpc.server.RpcServer;
import com.baidu.brpc.server.RpcServerOptions;
import io.netty.buffer.ByteBuf;
import io.netty.buffer.Unpooled;
import java.io.PrintStream;

/** A brpc-java server. It prints {"port":N} as soon as it accepts connections. */
public final class BrpcServer {
    /** The Greeter on the wire. */
    public interface Service {
        @BrpcMeta(serviceName = Greeter.GREETER, methodName = "SayHello")
        Text sayHello(Text in);

        @BrpcMeta(serviceName = Greeter.GREETER, methodName = "Who")
        Text who(Text in);

        @BrpcMeta(serviceName = Greeter.GREETER, methodName = "Fail")
        Text fail(Text in);

        @BrpcMeta(serviceName = Greeter.GREETER, methodName = "Sleep")
        Text sleep(Number in);

        @BrpcMeta(serviceName = Greeter.GREETER, methodName = "Blob")
        Blob blob(Blob in);

        @BrpcMeta(serviceName = Greeter.GREETER, methodName = "Metadata")
        Text metadata(Text in);

        @BrpcMeta(serviceName = Greeter.GREETER, methodName = "Attach")
        Text attach(Text in);

        @BrpcMeta(serviceName = Greeter.AUDIT, methodName = "Who")
        Text audit(Text in);
    }

    private static final class Impl implements Service {
        private final Greeter greeter;

        Impl(String name) { greeter = new Greeter(name); }

        @Override
        public Text sayHello(Text in) { return greeter.sayHello(in); }

        @Override
        public Text who(Text in) { return greeter.who(); }

        @Override
        public Text fail(Text in) { return greeter.fail(in); }

        @Override
        public Text sleep(Number in) { return greeter.sleep(in); }

        @Override
        public Blob blob(Blob in) { return greeter.blob(in); }

        @Override
        public Text metadata(Text in) {
            // The library keeps the log id of a request to itself.
            return greeter.metadata(null, RpcContext.getContext().getRequestKvAttachment());
        }

        @Override
        public Text attach(Text in) {
            ByteBuf attachment = RpcContext.getContext().getRequestBinaryAttachment();
            byte[] bytes = new byte[attachment == null ? 0 : attachment.readableBytes()];
            if (attachment != null) {
                attachment.getBytes(attachment.readerIndex(), bytes);
            }
            RpcContext.getContext().setResponseBinaryAttachment(Unpooled.wrappedBuffer(greeter.attachment(bytes)));
            return greeter.who();
        }

        @Override
        public Text audit(Text in) { return greeter.who(); }
    }

    public static void main(String[] argv) throws Exception {
        PrintStream out = System.out;
        System.setOut(System.err);
        Flags flags = new Flags(argv);
        int port = flags.number("port", 0);
        RpcServerOptions options = new RpcServerOptions();
        // Otherwise a slow call per core stops the server.
        options.setWorkThreadNum(32);
        RpcServer server = new RpcServer(flags.text("host", "127.0.0.1"), port, options);
        server.registerService(new Impl(flags.text("name", "brpc-java")));
        server.start();
        Greeter.ready(out, port);
    }
}
