package org.meltemi.test.brpc;

import com.google.gson.Gson;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.TreeMap;

/** What both servers do. */
public final class Greeter {
    /** The services' names; Audit has the same methods. */
    public static final String GREETER = "meltemi.test.Greeter";

    public static final String AUDIT = "meltemi.test.Audit";

    private final String name;

    public Greeter(String name) { this.name = name; }

    public Text sayHello(Text in) { return new Text(name + ": hello " + in.text); }

    public Text who() { return new Text(name); }

    public Text fail(Text in) { throw new Failure(in.text); }

    /** Answers after that many milliseconds. That it sleeps for a minute or more it says. */
    public Text sleep(Number in) {
        if (in.number >= 60_000) {
            System.err.println("asleep");
        }
        try {
            Thread.sleep(in.number);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
        return who();
    }

    public Blob blob(Blob in) { return in; }

    /** Answers the log id and the key/value attachments of the request, as JSON. */
    public Text metadata(Long logId, Map<String, ?> attachments) {
        Map<String, Object> all = new TreeMap<>();
        if (attachments != null) {
            all.putAll(attachments);
        }
        if (logId != null) {
            all.put("log_id", logId.toString());
        }
        return new Text(new Gson().toJson(all));
    }

    /** The answer's binary attachment to that of the request. */
    public byte[] attachment(byte[] in) {
        byte[] who = (name + "|").getBytes(StandardCharsets.UTF_8);
        byte[] out = new byte[who.length + in.length];
        System.arraycopy(who, 0, out, 0, who.length);
        System.arraycopy(in, 0, out, who.length, in.length);
        return out;
    }

    /** Says that the server accepts connections, and serves for ever. */
    public static void ready(PrintStream out, int port) throws InterruptedException {
        out.println("{\"port\":" + port + "}");
        out.flush();
        Thread.currentThread().join();
    }
}
