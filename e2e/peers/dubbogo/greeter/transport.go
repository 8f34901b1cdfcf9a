package greeter

import (
	"maps"

	"dubbo.apache.org/dubbo-go/v3/config"
)

// SetTransport sets parameters of dubbo-go's connections, whose names are those
// of its configuration file. The defaults allow messages of 100 KB only.
//
// The transport reads them from the global configuration and nowhere else.
func SetTransport(params map[string]any) {
	all := map[string]any{
		"heartbeat-timeout": "5s", "session-timeout": "180s",
		"getty-session-param": map[string]any{
			"tcp-no-delay": true, "tcp-keep-alive": true, "keep-alive-period": "180s",
			"tcp-r-buf-size": 262144, "tcp-w-buf-size": 65536,
			"tcp-read-timeout": "1s", "tcp-write-timeout": "5s", "wait-timeout": "1s",
			"max-msg-len": 16 << 20, "session-name": "greeter",
		},
	}
	maps.Copy(all, params)
	root := config.NewRootConfigBuilder().Build()
	root.Protocols = map[string]*config.ProtocolConfig{"dubbo": {Name: "dubbo", Params: all}}
	config.SetRootConfig(*root)
}
