package metadataexchange

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meltemi-mesh/meltemi/filter"
)

// The fields of the Struct that Istio's proxies send.
const (
	fieldName         = "NAME"
	fieldNamespace    = "NAMESPACE"
	fieldWorkloadName = "WORKLOAD_NAME"
	fieldClusterID    = "CLUSTER_ID"
	fieldOwner        = "OWNER"
	fieldLabels       = "LABELS"
)

// encode writes what is sent of w: a Struct in base64.
func encode(w *filter.Workload) (string, error) {
	labels := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for k, v := range w.Labels {
		labels.Fields[k] = structpb.NewStringValue(v)
	}
	s := &structpb.Struct{Fields: map[string]*structpb.Value{fieldLabels: structpb.NewStructValue(labels)}}
	for k, v := range map[string]string{
		fieldName: w.Name, fieldNamespace: w.Namespace, fieldWorkloadName: w.WorkloadName, fieldClusterID: w.ClusterID, fieldOwner: w.Owner,
	} {
		if v != "" {
			s.Fields[k] = structpb.NewStringValue(v)
		}
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
	return base64.StdEncoding.EncodeToString(b), err
}

var errMalformed = errors.New("malformed metadata of a peer")

// decode reads what a peer has sent, with those of its labels that are wanted; nil if
// that cannot be read.
func decode(id, metadata []byte, wanted map[string]bool) *filter.Workload {
	if len(id) > maxID || len(metadata) > maxMetadata || !utf8.Valid(id) {
		return nil
	}
	metadata = bytes.TrimRight(metadata, "=")
	b := make([]byte, base64.RawStdEncoding.DecodedLen(len(metadata)))
	n, err := base64.RawStdEncoding.Decode(b, metadata)
	if err != nil {
		return nil
	}
	w := &filter.Workload{ID: string(id), Labels: map[string]string{}}
	var labels []byte
	err = entries(b[:n], func(key string, v value) {
		switch key {
		case fieldName:
			w.Name = v.text
		case fieldNamespace:
			w.Namespace = v.text
		case fieldWorkloadName:
			w.WorkloadName = v.text
		case fieldClusterID:
			w.ClusterID = v.text
		case fieldOwner:
			w.Owner = v.text
		case fieldLabels:
			labels = v.fields
		}
	})
	if err == nil {
		err = entries(labels, func(key string, v value) {
			if delete(w.Labels, key); wanted[key] && v.is {
				w.Labels[key] = v.text
			}
		})
	}
	if err != nil {
		return nil
	}
	return w
}

// value is a google.protobuf.Value, as far as it matters.
type value struct {
	text   string // of a string
	is     bool   // a string
	fields []byte // of a Struct
}

// Fields of google.protobuf's Struct, of its entries, and of Value.
const (
	structFields = 1
	entryKey     = 1
	entryValue   = 2
	valueString  = 3
	valueStruct  = 5
	valueLast    = 6
)

// entries calls f for the entries of the Struct b, in their order: the last of a key
// counts.
func entries(b []byte, f func(key string, v value)) error {
	return each(b, func(number uint64, entry []byte, wire byte) error {
		if number != structFields || wire != wireDelimited {
			return nil
		}
		var key string
		var v value
		err := each(entry, func(number uint64, b []byte, wire byte) (err error) {
			switch {
			case wire != wireDelimited:
			case number == entryKey:
				key, err = text(b)
			case number == entryValue:
				err = v.parse(b)
			}
			return err
		})
		if err == nil {
			f(key, v)
		}
		return err
	})
}

// parse reads a Value: the last of its kinds counts, and several Structs are one.
func (v *value) parse(b []byte) error {
	return each(b, func(number uint64, b []byte, wire byte) (err error) {
		switch {
		case number > valueLast || number < 1 || wire != valueWires[number]: // unknown
		case number == valueString:
			*v = value{is: true}
			v.text, err = text(b)
		case number == valueStruct:
			*v = value{fields: append(v.fields, b...)}
		default:
			*v = value{}
		}
		return err
	})
}

func text(b []byte) (string, error) {
	if !utf8.Valid(b) {
		return "", errMalformed
	}
	return string(b), nil
}

// valueWires are the wire types of Value's fields, by their numbers.
var valueWires = [valueLast + 1]byte{
	1: wireVarint, 2: wireFixed64, valueString: wireDelimited, 4: wireVarint, valueStruct: wireDelimited, valueLast: wireDelimited,
}

// Wire types of protobuf.
const (
	wireVarint    = 0
	wireFixed64   = 1
	wireDelimited = 2
	wireFixed32   = 5
)

// each calls f for the fields of a protobuf message, with the bytes of those that are
// delimited, and their wire types.
func each(b []byte, f func(number uint64, b []byte, wire byte) error) error {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 || tag>>3 == 0 || tag>>3 >= 1<<29 {
			return errMalformed
		}
		b = b[n:]
		size, skip := uint64(0), 0
		switch tag & 7 {
		case wireVarint:
			_, skip = binary.Uvarint(b)
			if skip <= 0 {
				return errMalformed
			}
		case wireFixed64:
			size = 8
		case wireFixed32:
			size = 4
		case wireDelimited:
			if size, skip = binary.Uvarint(b); skip <= 0 {
				return errMalformed
			}
		default:
			return errMalformed
		}
		if b = b[skip:]; size > uint64(len(b)) {
			return errMalformed
		}
		if err := f(tag>>3, b[:size], byte(tag&7)); err != nil {
			return err
		}
		b = b[size:]
	}
	return nil
}
