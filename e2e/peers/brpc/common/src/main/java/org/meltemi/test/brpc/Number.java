package org.meltemi.test.brpc;

import com.baidu.bjf.remoting.protobuf.FieldType;
import com.baidu.bjf.remoting.protobuf.annotation.Protobuf;

/** A message with a number. */
public class Number {
    @Protobuf(fieldType = FieldType.INT64, order = 1)
    public Long number = 0L;

    public Number() {}

    public Number(long number) { this.number = number; }
}
