// Package wire has the transports and protocols that the Go peers can speak.
package wire

import (
	"flag"
	"fmt"
	"time"

	"github.com/apache/thrift/lib/go/thrift"
)

// Wire is a transport and a protocol.
type Wire struct {
	transport, protocol string
	zlib                bool
}

// Flags defines the flags that choose them.
func Flags() *Wire {
	w := &Wire{}
	flag.StringVar(&w.transport, "transport", "framed", "framed, unframed or header")
	flag.StringVar(&w.protocol, "protocol", "strict", "strict or lax (binary without a version), compact")
	flag.BoolVar(&w.zlib, "zlib", false, "compress what the header transport carries")
	return w
}

// Factories makes what clients and servers are made of. Reads and connects of
// clients give up after timeout.
func (w *Wire) Factories(timeout time.Duration) (thrift.TTransportFactory, thrift.TProtocolFactory, *thrift.TConfiguration, error) {
	strict := w.protocol == "strict"
	conf := &thrift.TConfiguration{
		ConnectTimeout: timeout, SocketTimeout: timeout,
		TBinaryStrictRead: &strict, TBinaryStrictWrite: &strict,
	}
	inner := thrift.THeaderProtocolBinary
	var protocol thrift.TProtocolFactory = thrift.NewTBinaryProtocolFactoryConf(conf)
	switch w.protocol {
	case "strict", "lax":
	case "compact":
		inner = thrift.THeaderProtocolCompact
		protocol = thrift.NewTCompactProtocolFactoryConf(conf)
	default:
		return nil, nil, nil, fmt.Errorf("unknown protocol %q", w.protocol)
	}
	switch w.transport {
	case "framed":
		return thrift.NewTFramedTransportFactoryConf(thrift.NewTTransportFactory(), conf), protocol, conf, nil
	case "unframed":
		return thrift.NewTBufferedTransportFactory(8192), protocol, conf, nil
	case "header":
		conf.THeaderProtocolID = &inner
		if w.zlib {
			conf.THeaderTransforms = []thrift.THeaderTransformID{thrift.TransformZlib}
		}
		// The protocol wraps the socket by itself.
		return thrift.NewTTransportFactory(), thrift.NewTHeaderProtocolFactoryConf(conf), conf, nil
	}
	return nil, nil, nil, fmt.Errorf("unknown transport %q", w.transport)
}
