package org.meltemi.test.brpc;

import com.google.gson.JsonArray;
import com.google.gson.annotations.SerializedName;
import java.util.Base64;
import java.util.Map;

/** What a client is asked to do, in JSON. */
public final class Command {
    long id;

    @SerializedName("interface")
    String service;

    String method;
    JsonArray args;
    int count;
    int concurrency;

    @SerializedName("duration_ms")
    long durationMs;

    boolean summary;

    /** Key/value attachments. */
    public Map<String, String> attachments;

    @SerializedName("log_id")
    public Long logId;

    @SerializedName("timeout_ms")
    public int timeoutMs;

    private String attachment;

    public String service() { return service == null ? Greeter.GREETER : service; }

    public String method() { return method; }

    /** The binary attachment, null if there is none. */
    public byte[] attachment() { return attachment == null ? null : Base64.getDecoder().decode(attachment); }
}
