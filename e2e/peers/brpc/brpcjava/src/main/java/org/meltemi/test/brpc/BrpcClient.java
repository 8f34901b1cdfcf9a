package org.meltemi.test.brpc;

import com.baidu.brpc.RpcContext;
import com.baidu.brpc.client.BrpcProxy;
import com.baidu.brpc.client.RpcClient;
import com.baidu.brpc.client.RpcClientOptions;
import com.baidu.brpc.client.channel.ChannelType;
import com.baidu.brpc.exceptions.RpcException;
import com.baidu.brpc.interceptor.AbstractInterceptor;
import com.baidu.brpc.interceptor.Interceptor;
import com.baidu.brpc.protocol.Options;
import com.baidu.brpc.protocol.Request;
import io.netty.buffer.ByteBuf;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.List;

/** A brpc-java client that obeys lines of JSON. */
public final class BrpcClient extends Client {
    private final ThreadLocal<Command> command = new ThreadLocal<>();
    private final Calls calls;

    /** Gives requests the names that their command says. */
    private final class Names extends AbstractInterceptor {
        @Override
        public boolean handleRequest(Request request) {
            request.setServiceName(command.get().service());
            request.setMethodName(command.get().method());
            return true;
        }
    }

    private BrpcClient(PrintStream out, Flags flags) {
        super(out);
        RpcClientOptions options = new RpcClientOptions();
        options.setProtocolType(Options.ProtocolType.PROTOCOL_BAIDU_STD_VALUE);
        options.setReadTimeoutMillis(flags.number("timeout", 3000));
        options.setConnectTimeoutMillis(10_000); // instead of 1 s, which passes on a busy machine
        options.setMaxTryTimes(1);
        int connections = flags.number("connections", 0);
        if (connections == 1) {
            options.setChannelType(ChannelType.SINGLE_CONNECTION);
        } else if (connections > 1) {
            options.setMaxTotalConnections(connections);
        }
        RpcClient client = new RpcClient("list://" + flags.text("addr", ""), options, List.<Interceptor>of(new Names()));
        calls = BrpcProxy.getProxy(client, Calls.class);
    }

    public static void main(String[] argv) throws Exception {
        PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
        System.setOut(System.err);
        new BrpcClient(out, new Flags(argv)).obey();
        System.exit(0);
    }

    @Override
    protected Outcome call(Command cmd) {
        command.set(cmd);
        RpcContext context = RpcContext.getContext();
        context.reset();
        if (cmd.attachments != null) {
            context.setRequestKvAttachment(new HashMap<>(cmd.attachments));
        }
        if (cmd.logId != null) {
            context.setLogId(cmd.logId);
        }
        if (cmd.timeoutMs > 0) {
            context.setReadTimeoutMillis(cmd.timeoutMs);
        }
        context.setRequestBinaryAttachment(cmd.attachment());
        Outcome outcome = new Outcome();
        outcome.value = invoke(calls, cmd);
        ByteBuf attachment = RpcContext.getContext().getResponseBinaryAttachment();
        if (attachment != null) {
            outcome.attachment = new byte[attachment.readableBytes()];
            attachment.readBytes(outcome.attachment);
            attachment.release();
        }
        return outcome;
    }

    @Override
    protected String kind(Throwable e) {
        if (!(e instanceof RpcException r)) {
            return super.kind(e);
        }
        // A timeout that brpc-java's timer finds before the caller does is the cause of another exception.
        boolean late = r.getCause() instanceof RpcException c && c.getCode() == RpcException.TIMEOUT_EXCEPTION;
        return "RpcException " + (late ? RpcException.TIMEOUT_EXCEPTION : r.getCode());
    }
}
