package org.meltemi.test.thrift;

import org.apache.thrift.TBase;
import org.apache.thrift.TException;
import org.apache.thrift.TFieldIdEnum;
import org.apache.thrift.protocol.TField;
import org.apache.thrift.protocol.TProtocol;
import org.apache.thrift.protocol.TProtocolUtil;
import org.apache.thrift.protocol.TStruct;
import org.apache.thrift.protocol.TType;

/** The arguments of a call, numbered from 1, or its result, whose value is field 0. */
final class Struct implements TBase<Struct, TFieldIdEnum> {
    private static final long serialVersionUID = 1;

    private final transient Object[] fields;
    transient Object value;

    Struct(Object... fields) { this.fields = fields; }

    @Override
    public void write(TProtocol to) throws TException {
        to.writeStructBegin(new TStruct("args"));
        for (int i = 0; i < fields.length; i++) {
            boolean number = fields[i] instanceof Integer;
            to.writeFieldBegin(new TField("", number ? TType.I32 : TType.STRING, (short) (i + 1)));
            if (number) {
                to.writeI32((Integer) fields[i]);
            } else {
                to.writeString((String) fields[i]);
            }
            to.writeFieldEnd();
        }
        to.writeFieldStop();
        to.writeStructEnd();
    }

    @Override
    public void read(TProtocol from) throws TException {
        from.readStructBegin();
        for (TField f; (f = from.readFieldBegin()).type != TType.STOP; from.readFieldEnd()) {
            if (f.id == 0 && f.type == TType.I32) {
                value = from.readI32();
            } else if (f.id == 0 && f.type == TType.STRING) {
                value = from.readString();
            } else {
                TProtocolUtil.skip(from, f.type);
            }
        }
        from.readStructEnd();
    }

    // What a call does not need.

    @Override
    public TFieldIdEnum fieldForId(int id) { throw new UnsupportedOperationException(); }

    @Override
    public boolean isSet(TFieldIdEnum field) { throw new UnsupportedOperationException(); }

    @Override
    public Object getFieldValue(TFieldIdEnum field) { throw new UnsupportedOperationException(); }

    @Override
    public void setFieldValue(TFieldIdEnum field, Object v) { throw new UnsupportedOperationException(); }

    @Override
    public Struct deepCopy() { throw new UnsupportedOperationException(); }

    @Override
    public void clear() { value = null; }

    @Override
    public int compareTo(Struct other) { throw new UnsupportedOperationException(); }
}
