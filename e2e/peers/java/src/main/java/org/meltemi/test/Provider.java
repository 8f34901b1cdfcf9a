package org.meltemi.test;

import java.io.PrintStream;
import java.util.List;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ProtocolConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.ServiceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;

/** A Dubbo Java server. It prints {"port":N} as soon as it accepts connections. */
public final class Provider {
    public static void main(String[] argv) throws Exception {
        PrintStream out = System.out;
        System.setOut(System.err);
        Flags flags = new Flags(argv);

        int port = flags.number("port", 0);
        ProtocolConfig protocol = new ProtocolConfig("dubbo", port);
        if (flags.number("heartbeat", 0) > 0) {
            protocol.setHeartbeat(flags.number("heartbeat", 0));
        }
        protocol.setPayload(16 << 20);

        ApplicationConfig app = new ApplicationConfig("greeter");
        app.setQosEnable(false);
        DubboBootstrap bootstrap = DubboBootstrap.getInstance()
                .application(app)
                .registry(new RegistryConfig(RegistryConfig.NO_AVAILABLE))
                .protocol(protocol);
        GreeterImpl greeter = new GreeterImpl(flags.text("name", "java"));
        for (Class<?> type : List.of(Greeter.class, Audit.class)) {
            ServiceConfig<Object> service = new ServiceConfig<>();
            service.setInterface(type);
            service.setRef(greeter);
            service.setGroup(flags.text("group", ""));
            service.setVersion(flags.text("version", ""));
            bootstrap.service(service);
        }
        bootstrap.start();
        out.println("{\"port\":" + port + "}");
        out.flush();
        Thread.currentThread().join();
    }
}
