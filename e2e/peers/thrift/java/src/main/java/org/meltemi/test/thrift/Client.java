package org.meltemi.test.thrift;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonElement;
import com.google.gson.annotations.SerializedName;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.thrift.TApplicationException;
import org.apache.thrift.TConfiguration;
import org.apache.thrift.TException;
import org.apache.thrift.TServiceClient;
import org.apache.thrift.protocol.TBinaryProtocol;
import org.apache.thrift.protocol.TCompactProtocol;
import org.apache.thrift.protocol.TMultiplexedProtocol;
import org.apache.thrift.protocol.TProtocol;
import org.apache.thrift.transport.TSocket;
import org.apache.thrift.transport.TTransport;
import org.apache.thrift.transport.layered.TFramedTransport;

/**
 * An Apache Thrift client that does what lines of JSON on its standard input say, and answers with
 * lines of JSON, like the client in Go: one call after the other, over one connection. It makes the
 * calls of echo.thrift that take and return strings and numbers, as the code does that the compiler
 * generates.
 */
public final class Client extends TServiceClient {
    private Client(TProtocol protocol) { super(protocol); }

    private Object call(String method, Object... args) throws TException {
        sendBase(method, new Struct(args));
        Struct result = new Struct();
        receiveBase(result, method);
        if (result.value == null) {
            throw new TApplicationException(TApplicationException.MISSING_RESULT, method + " failed: unknown result");
        }
        return result.value;
    }

    private static final class Command {
        long id;

        @SerializedName("interface")
        String service;

        String method;
        List<JsonElement> args;

        Object[] args() {
            if (args == null) {
                return new Object[0];
            }
            return args.stream().map(a -> a.getAsJsonPrimitive().isNumber() ? (Object) a.getAsInt() : a.getAsString()).toArray();
        }
    }

    public static void main(String[] argv) throws Exception {
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        Map<String, String> flags = new HashMap<>();
        for (int i = 0; i + 1 < argv.length; i += 2) {
            flags.put(argv[i].substring(1), argv[i + 1]);
        }
        String addr = flags.get("addr");
        int colon = addr.lastIndexOf(':');
        int timeout = Integer.parseInt(flags.getOrDefault("timeout", "3000"));
        TTransport transport = new TSocket(new TConfiguration(), addr.substring(0, colon), Integer.parseInt(addr.substring(colon + 1)), timeout);
        if (flags.get("transport").equals("framed")) {
            transport = new TFramedTransport(transport);
        }
        TProtocol protocol;
        switch (flags.get("protocol")) {
            case "compact":
                protocol = new TCompactProtocol(transport);
                break;
            case "lax":
                protocol = new TBinaryProtocol(transport, false, false);
                break;
            default:
                protocol = new TBinaryProtocol(transport, true, true);
        }
        transport.open();

        Gson gson = new GsonBuilder().serializeNulls().disableHtmlEscaping().create();
        Map<String, Client> services = new HashMap<>();
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = in.readLine()) != null; ) {
            Command cmd = gson.fromJson(line, Command.class);
            String service = cmd.service == null ? "" : cmd.service;
            Client client = services.computeIfAbsent(
                service, name -> new Client(name.isEmpty() ? protocol : new TMultiplexedProtocol(protocol, name)));
            Map<String, Object> answer = new LinkedHashMap<>();
            answer.put("id", cmd.id);
            long start = System.nanoTime();
            try {
                answer.put("value", client.call(cmd.method, cmd.args()));
            } catch (Exception e) {
                answer.put("error", String.valueOf(e.getMessage()));
                answer.put("error_type", e instanceof TApplicationException t ? "TApplicationException " + t.getType() : "transport");
            }
            answer.put("latency_us", (System.nanoTime() - start) / 1000);
            out.println(gson.toJson(answer));
        }
        transport.close();
    }
}
