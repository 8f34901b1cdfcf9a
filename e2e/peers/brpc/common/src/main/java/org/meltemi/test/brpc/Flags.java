package org.meltemi.test.brpc;

import java.util.HashMap;
import java.util.Map;

/** Command line of the form -name value. */
public final class Flags {
    private final Map<String, String> values = new HashMap<>();

    public Flags(String[] argv) {
        for (int i = 0; i + 1 < argv.length; i += 2) {
            values.put(argv[i].substring(1), argv[i + 1]);
        }
    }

    public String text(String name, String otherwise) {
        String v = values.getOrDefault(name, "");
        return v.isEmpty() ? otherwise : v;
    }

    public int number(String name, int otherwise) {
        return Integer.parseInt(text(name, Integer.toString(otherwise)));
    }
}
