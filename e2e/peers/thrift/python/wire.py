"""The transports and protocols that the Python peers can speak."""

from thrift.protocol.TBinaryProtocol import TBinaryProtocolFactory
from thrift.protocol.TCompactProtocol import TCompactProtocolFactory
from thrift.protocol.THeaderProtocol import THeaderProtocolFactory
from thrift.transport.THeaderTransport import THeaderClientType, THeaderSubprotocolID
from thrift.transport.TTransport import TBufferedTransportFactory, TFramedTransportFactory, TTransportFactoryBase


def add_flags(parser):
    parser.add_argument("-transport", choices=["framed", "unframed", "header"], default="framed")
    parser.add_argument("-protocol", choices=["strict", "lax", "compact"], default="strict",
                        help="strict or lax: binary with or without a version")


def factories(transport, protocol):
    """Gives the factories of the transport and of the protocol."""
    compact = protocol == "compact"
    if transport == "header":
        inner = THeaderSubprotocolID.COMPACT if compact else THeaderSubprotocolID.BINARY
        # The protocol wraps the socket by itself.
        return TTransportFactoryBase(), THeaderProtocolFactory(
            allowed_client_types=(
                THeaderClientType.HEADERS,
                THeaderClientType.FRAMED_BINARY, THeaderClientType.UNFRAMED_BINARY,
                THeaderClientType.FRAMED_COMPACT, THeaderClientType.UNFRAMED_COMPACT,
            ), default_protocol=inner)
    transports = {"framed": TFramedTransportFactory, "unframed": TBufferedTransportFactory}
    if compact:
        return transports[transport](), TCompactProtocolFactory()
    strict = protocol == "strict"
    return transports[transport](), TBinaryProtocolFactory(strictRead=strict, strictWrite=strict)
