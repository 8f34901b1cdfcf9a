package org.meltemi.test.brpc;

import com.baidu.jprotobuf.pbrpc.ProtobufRPCService;
import com.baidu.jprotobuf.pbrpc.ServerAttachmentHandler;
import com.baidu.jprotobuf.pbrpc.intercept.InvokerInterceptor;
import com.baidu.jprotobuf.pbrpc.intercept.MethodInvocationInfo;
import com.baidu.jprotobuf.pbrpc.server.RpcServiceRegistry;
import com.baidu.jprotobuf.pbrpc.transport.RpcErrorMessage;
import com.baidu.jprotobuf.pbrpc.transport.RpcServer;
import com.baidu.jprotobuf.pbrpc.transport.RpcServerOptions;
import com.baidu.jprotobuf.pbrpc.utils.LogIdThreadLocalHolder;
import io.netty.channel.socket.nio.NioServerSocketChannel;
import java.io.PrintStream;
import java.lang.reflect.InvocationTargetException;
import java.net.InetSocketAddress;
import java.util.Map;

/** A jprotobuf-rpc server. It prints {"port":N} as soon as it accepts connections. */
public final class JprotobufServer {
    private static final ThreadLocal<Map<String, String>> FIELDS = new ThreadLocal<>();
    private static Greeter greeter;

    /** The Greeter on the wire. */
    public static final class Service {
        @ProtobufRPCService(serviceName = Greeter.GREETER, methodName = "SayHello")
        public Text sayHello(Text in) { return greeter.sayHello(in); }

        @ProtobufRPCService(serviceName = Greeter.GREETER, methodName = "Who")
        public Text who(Text in) { return greeter.who(); }

        @ProtobufRPCService(serviceName = Greeter.GREETER, methodName = "Fail")
        public Text fail(Text in) { return greeter.fail(in); }

        @ProtobufRPCService(serviceName = Greeter.GREETER, methodName = "Sleep")
        public Text sleep(Number in) { return greeter.sleep(in); }

        @ProtobufRPCService(serviceName = Greeter.GREETER, methodName = "Blob")
        public Blob blob(Blob in) { return greeter.blob(in); }

        @ProtobufRPCService(serviceName = Greeter.GREETER, methodName = "Metadata")
        public Text metadata(Text in) { return greeter.metadata(LogIdThreadLocalHolder.getLogId(), FIELDS.get()); }

        @ProtobufRPCService(
                serviceName = Greeter.GREETER,
                methodName = "Attach",
                attachmentHandler = Attachments.class)
        public Text attach(Text in) { return greeter.who(); }

        @ProtobufRPCService(serviceName = Greeter.AUDIT, methodName = "Who")
        public Text audit(Text in) { return greeter.who(); }
    }

    /** Answers binary attachments. */
    public static final class Attachments implements ServerAttachmentHandler {
        @Override
        public byte[] handleAttachement(byte[] in, String service, String method, Object... params) {
            return greeter.attachment(in == null ? new byte[0] : in);
        }
    }

    /** Keeps the extension fields of the request that a thread serves. */
    private static final class Fields implements InvokerInterceptor {
        @Override
        public void beforeInvoke(MethodInvocationInfo call) { FIELDS.set(call.getExtFields()); }

        @Override
        public Object process(MethodInvocationInfo call) { return null; }

        @Override
        public void afterProcess() { FIELDS.remove(); }
    }

    private static RpcErrorMessage describe(Exception e) {
        Throwable cause = e instanceof InvocationTargetException t ? t.getTargetException() : e;
        return cause instanceof Failure ? new RpcErrorMessage(Failure.CODE, cause.getMessage()) : null;
    }

    public static void main(String[] argv) throws Exception {
        PrintStream out = System.out;
        System.setOut(System.err);
        Flags flags = new Flags(argv);
        int port = flags.number("port", 0);
        greeter = new Greeter(flags.text("name", "jprotobuf"));
        RpcServerOptions options = new RpcServerOptions();
        // Otherwise a slow call holds up all others of its connection.
        options.setTaskTheads(32);
        RpcServer server = new RpcServer(
                NioServerSocketChannel.class, options, new RpcServiceRegistry(), JprotobufServer::describe);
        server.setInterceptor(new Fields());
        server.registerService(new Service());
        server.start(new InetSocketAddress(flags.text("host", "127.0.0.1"), port));
        Greeter.ready(out, port);
    }
}
