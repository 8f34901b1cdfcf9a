package org.meltemi.test.brpc;

import com.baidu.jprotobuf.pbrpc.ClientAttachmentHandler;
import com.baidu.jprotobuf.pbrpc.ErrorDataException;
import com.baidu.jprotobuf.pbrpc.ProtobufRPC;
import com.baidu.jprotobuf.pbrpc.client.ProtobufRpcProxy;
import com.baidu.jprotobuf.pbrpc.client.RpcMethodInfo;
import com.baidu.jprotobuf.pbrpc.data.RpcDataPackage;
import com.baidu.jprotobuf.pbrpc.data.RpcRequestMetaExtField;
import com.baidu.jprotobuf.pbrpc.transport.RpcClient;
import com.baidu.jprotobuf.pbrpc.transport.RpcClientOptions;
import com.baidu.jprotobuf.pbrpc.utils.TalkTimeoutController;
import java.io.IOException;
import java.io.PrintStream;
import java.lang.reflect.UndeclaredThrowableException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;

/** A jprotobuf-rpc client that obeys lines of JSON. */
public final class JprotobufClient extends Client {
    private static final ThreadLocal<Command> COMMAND = new ThreadLocal<>();
    private static final ThreadLocal<byte[]> ATTACHMENT = new ThreadLocal<>();
    private final Calls calls;

    /** Calls with the annotations that the library wants. */
    public interface Annotated extends Calls {
        @Override
        @ProtobufRPC(serviceName = "any", methodName = "text", attachmentHandler = Attachments.class)
        Text text(Text in);

        @Override
        @ProtobufRPC(serviceName = "any", methodName = "number", attachmentHandler = Attachments.class)
        Text number(Number in);

        @Override
        @ProtobufRPC(serviceName = "any", methodName = "blob", attachmentHandler = Attachments.class)
        Blob blob(Blob in);
    }

    /** Carries binary attachments between a command and its call. */
    public static final class Attachments implements ClientAttachmentHandler {
        @Override
        public byte[] handleRequest(String service, String method, Object... params) {
            return COMMAND.get().attachment();
        }

        @Override
        public void handleResponse(byte[] attachment, String service, String method, Object... params) {
            ATTACHMENT.set(attachment);
        }
    }

    /** Gives requests the names and the key/value attachments that their command says. */
    private static final class Proxy extends ProtobufRpcProxy<Annotated> {
        Proxy(RpcClient client) { super(client, Annotated.class); }

        @Override
        protected RpcDataPackage buildRequestDataPackage(RpcMethodInfo info, Object[] args) throws IOException {
            Command cmd = COMMAND.get();
            RpcDataPackage request = super.buildRequestDataPackage(info, args);
            request.serviceName(cmd.service()).methodName(cmd.method());
            if (cmd.logId != null) {
                request.logId(cmd.logId);
            }
            if (cmd.attachments != null) {
                List<RpcRequestMetaExtField> fields = new ArrayList<>();
                cmd.attachments.forEach((k, v) -> fields.add(new RpcRequestMetaExtField(k, v)));
                request.getRpcMeta().getRequest().setExtFields(fields);
            }
            return request;
        }
    }

    private JprotobufClient(PrintStream out, Flags flags) {
        super(out);
        RpcClientOptions options = new RpcClientOptions();
        options.setOnceTalkTimeout(flags.number("timeout", 3000));
        options.setShareThreadPoolUnderEachProxy(true);
        // For a channel and its connection. The library's own bounds pass on a busy machine.
        options.setMaxWait(20_000);
        options.setConnectTimeout(10_000);
        int connections = flags.number("connections", 0);
        if (connections > 0) {
            options.setThreadPoolSize(connections);
            options.setMaxIdleSize(connections);
        }
        if (flags.number("chunk", 0) > 0) {
            options.setChunkSize(flags.number("chunk", 0));
        }
        String[] address = flags.text("addr", "").split(":");
        Proxy proxy = new Proxy(new RpcClient(options));
        proxy.setHost(address[0]);
        proxy.setPort(Integer.parseInt(address[1]));
        calls = proxy.proxy();
    }

    public static void main(String[] argv) throws Exception {
        PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
        System.setOut(System.err);
        new JprotobufClient(out, new Flags(argv)).obey();
        System.exit(0);
    }

    @Override
    protected Outcome call(Command cmd) throws Exception {
        COMMAND.set(cmd);
        ATTACHMENT.remove();
        TalkTimeoutController.setTalkTimeout(cmd.timeoutMs);
        Outcome outcome = new Outcome();
        try {
            outcome.value = invoke(calls, cmd);
        } catch (UndeclaredThrowableException e) {
            if (e.getCause() instanceof Exception cause) {
                throw cause;
            }
            throw e;
        }
        outcome.attachment = ATTACHMENT.get();
        return outcome;
    }

    @Override
    protected String kind(Throwable e) {
        return e instanceof ErrorDataException d ? "ErrorDataException " + d.getErrorCode() : super.kind(e);
    }
}
