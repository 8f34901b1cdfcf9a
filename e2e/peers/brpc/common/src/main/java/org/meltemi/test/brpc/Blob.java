package org.meltemi.test.brpc;

import com.baidu.bjf.remoting.protobuf.FieldType;
import com.baidu.bjf.remoting.protobuf.annotation.Protobuf;

/** A message with bytes. */
public class Blob {
    @Protobuf(fieldType = FieldType.BYTES, order = 1)
    public byte[] bytes = {};

    public Blob() {}

    public Blob(byte[] bytes) { this.bytes = bytes; }
}
