package org.meltemi.test;

import com.alibaba.fastjson2.JSON;
import com.alibaba.fastjson2.JSONArray;
import com.alibaba.fastjson2.JSONObject;
import com.alibaba.fastjson2.JSONWriter;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.MethodConfig;
import org.apache.dubbo.config.ReferenceConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;
import org.apache.dubbo.rpc.RpcContext;
import org.apache.dubbo.rpc.RpcException;
import org.apache.dubbo.rpc.service.GenericException;
import org.apache.dubbo.rpc.service.GenericService;

/** A Dubbo Java client that obeys lines of JSON, as the dubbo-go consumer does. */
public final class Consumer {
    /** A command that is no method of the service. */
    private static final String PENDING = "pending";

    private final PrintStream out;
    private final Flags flags;
    private final Map<String, Object> references = new ConcurrentHashMap<>();

    private Consumer(PrintStream out, Flags flags) {
        this.out = out;
        this.flags = flags;
    }

    public static void main(String[] argv) throws Exception {
        PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
        System.setOut(System.err);
        Consumer consumer = new Consumer(out, new Flags(argv));
        ApplicationConfig app = new ApplicationConfig("consumer");
        app.setQosEnable(false);
        DubboBootstrap.getInstance()
                .application(app)
                .registry(new RegistryConfig(RegistryConfig.NO_AVAILABLE))
                .start();

        ExecutorService commands = Executors.newCachedThreadPool();
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = in.readLine()) != null; ) {
            JSONObject cmd = JSON.parseObject(line);
            commands.execute(() -> consumer.run(cmd));
        }
        commands.shutdown();
        commands.awaitTermination(1, TimeUnit.HOURS);
        System.exit(0);
    }

    private synchronized void print(Object v) {
        out.println(JSON.toJSONString(v, JSONWriter.Feature.WriteMapNullValue));
        out.flush();
    }

    /** Carries one command out. */
    private void run(JSONObject cmd) {
        int callers = Math.max(1, cmd.getIntValue("concurrency"));
        long duration = cmd.getLongValue("duration_ms");
        int count = duration > 0 ? cmd.getIntValue("count") : Math.max(1, cmd.getIntValue("count"));
        long end = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(duration);
        boolean summary = cmd.getBooleanValue("summary");
        AtomicLong next = new AtomicLong();
        Map<String, Integer> values = new LinkedHashMap<>();
        Map<String, Integer> errors = new LinkedHashMap<>();
        Longs took = new Longs();
        Runnable caller = () -> {
            for (; ; ) {
                long n = next.incrementAndGet();
                if (count > 0 && n > count || duration > 0 && System.nanoTime() > end) {
                    return;
                }
                Map<String, Object> answer = call(cmd);
                if (!summary) {
                    print(answer);
                    continue;
                }
                synchronized (took) {
                    took.add((Long) answer.get("latency_us"));
                    if (answer.containsKey("error")) {
                        errors.merge((String) answer.get("error"), 1, Integer::sum);
                    } else {
                        values.merge(String.valueOf(answer.get("value")), 1, Integer::sum);
                    }
                }
            }
        };
        ExecutorService pool = Executors.newFixedThreadPool(callers);
        for (int i = 0; i < callers; i++) {
            pool.execute(caller);
        }
        pool.shutdown();
        try {
            pool.awaitTermination(1, TimeUnit.HOURS);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
        if (summary) {
            Map<String, Object> line = new LinkedHashMap<>();
            line.put("id", cmd.getLongValue("id"));
            line.put("calls", took.size());
            line.put("values", values);
            line.put("errors", errors);
            line.put("latency_us", took.percentiles());
            print(line);
        }
    }

    /** Makes one call. */
    private Map<String, Object> call(JSONObject cmd) {
        Map<String, Object> answer = new LinkedHashMap<>();
        answer.put("id", cmd.getLongValue("id"));
        long start = System.nanoTime();
        try {
            Object service = refer(cmd);
            JSONObject attachments = cmd.getJSONObject("attachments");
            if (attachments != null) {
                attachments.forEach((k, v) -> RpcContext.getClientAttachment().setObjectAttachment(k, v));
            }
            if (cmd.getIntValue("timeout_ms") > 0) {
                RpcContext.getClientAttachment().setObjectAttachment("timeout", cmd.getIntValue("timeout_ms"));
            }
            start = System.nanoTime();
            Object value = invoke(service, cmd);
            answer.put("latency_us", micros(start));
            answer.put("value", value);
            answer.put("attachments", new LinkedHashMap<>(RpcContext.getClientResponseContext().getObjectAttachments()));
        } catch (Throwable e) {
            Throwable cause = e instanceof java.util.concurrent.ExecutionException ? e.getCause() : e;
            answer.put("latency_us", micros(start));
            String text = cause.getMessage() == null ? cause.toString() : cause.getMessage();
            if (cause instanceof GreetingException g) {
                text += " (code " + g.getCode() + ")";
            }
            answer.put("error", text);
            String type = cause instanceof GenericException g ? g.getExceptionClass() : cause.getClass().getName();
            answer.put("error_type", cause instanceof RpcException r ? type + " " + r.getCode() : type);
        } finally {
            RpcContext.removeContext();
        }
        return answer;
    }

    private static long micros(long start) { return TimeUnit.NANOSECONDS.toMicros(System.nanoTime() - start); }

    private static Object invoke(Object service, JSONObject cmd) throws Throwable {
        JSONArray args = cmd.getJSONArray("args");
        if (service instanceof GenericService generic) {
            return generic.$invoke(cmd.getString("method"), new String[] {"java.lang.String"}, args.toArray());
        }
        Greeter g = (Greeter) service;
        switch (cmd.getString("method")) {
            case "sayHello": return g.sayHello(args.getString(0));
            case "sayHelloAsync": return g.sayHelloAsync(args.getString(0)).get();
            case "who": return g.who();
            case "echo": return g.echo(args.getObject(0, Person.class));
            case "echoMap": return g.echoMap(args.getJSONObject(0) == null ? null : new LinkedHashMap<>(args.getJSONObject(0)));
            case "returnNull": return g.returnNull(args.getString(0));
            case "fail": return g.fail(args.getString(0));
            case "sleep": return g.sleep(args.getIntValue(0));
            case "tell": g.tell(args.getString(0)); return null;
            case "told": return g.told();
            case "blob": return Base64.getEncoder().encodeToString(g.blob(Base64.getDecoder().decode(args.getString(0))));
            case "attachments": return g.attachments();
            case PENDING: return pending(g, args.getIntValue(0), args.getIntValue(1));
            default: throw new IllegalArgumentException(cmd.getString("method"));
        }
    }

    /** Makes count calls that take ms, and as many of a method that gives a future, while one thread goes on. */
    private static Map<String, Object> pending(Greeter g, int count, int ms) {
        List<CompletableFuture<String>> slow = new ArrayList<>();
        List<CompletableFuture<String>> futures = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            slow.add(RpcContext.getServiceContext().asyncCall(() -> g.sleep(ms)));
            futures.add(g.sayHelloAsync(Integer.toString(i)));
        }
        String who = g.who();
        Map<String, Object> outcome = new LinkedHashMap<>();
        outcome.put("pending", slow.stream().filter(f -> !f.isDone()).count());
        outcome.put("who", who);
        outcome.put("futures", futures.stream().map(CompletableFuture::join).toList());
        outcome.put("slow", slow.stream().map(CompletableFuture::join).toList());
        return outcome;
    }

    /** Gives the proxy of an interface; methods that it does not have are called generically. */
    private Object refer(JSONObject cmd) {
        String name = cmd.containsKey("interface") ? cmd.getString("interface") : Greeter.class.getName();
        String method = cmd.getString("method");
        boolean known = (method.equals(PENDING) || Arrays.stream(Greeter.class.getMethods()).anyMatch(m -> m.getName().equals(method)))
                && (name.equals(Greeter.class.getName()) || name.equals(Audit.class.getName()));
        boolean oneway = cmd.getBooleanValue("oneway");
        String group = cmd.getString("group");
        String version = cmd.getString("version");
        String key = String.join("|", name, String.valueOf(group), String.valueOf(version), oneway + "/" + known);
        return references.computeIfAbsent(key, k -> {
            ReferenceConfig<Object> ref = new ReferenceConfig<>();
            ref.setInterface(name);
            if (!known) {
                ref.setGeneric("true");
            }
            ref.setUrl("dubbo://" + flags.text("addr", "") + "/" + name);
            ref.setGroup(group);
            ref.setVersion(version);
            if (!flags.text("retries", "").equals("own")) {
                ref.setRetries(0);
            }
            ref.setCheck(false);
            ref.setTimeout(flags.number("timeout", 3000));
            ref.setConnections(flags.number("connections", 0));
            Map<String, String> parameters = new LinkedHashMap<>(Map.of("payload", Integer.toString(16 << 20)));
            if (flags.number("heartbeat", 0) > 0) {
                parameters.put("heartbeat", flags.text("heartbeat", ""));
            }
            ref.setParameters(parameters);
            if (oneway) {
                MethodConfig tell = new MethodConfig();
                tell.setName("tell");
                tell.setReturn(false);
                ref.setMethods(List.of(tell));
            }
            return ref.get();
        });
    }

    /** Latencies. */
    private static final class Longs {
        private long[] v = new long[1024];
        private int n;

        void add(long x) {
            if (n == v.length) {
                v = Arrays.copyOf(v, 2 * n);
            }
            v[n++] = x;
        }

        int size() { return n; }

        Map<String, Long> percentiles() {
            Map<String, Long> m = new LinkedHashMap<>();
            long[] sorted = Arrays.copyOf(v, n);
            Arrays.sort(sorted);
            if (n > 0) {
                m.put("p50", sorted[n / 2]);
                m.put("p90", sorted[n * 9 / 10]);
                m.put("p99", sorted[n * 99 / 100]);
                m.put("max", sorted[n - 1]);
            }
            return m;
        }
    }
}
