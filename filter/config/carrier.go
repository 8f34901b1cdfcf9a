package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"strconv"
	"strings"

	"github.com/meltemi-mesh/meltemi/filter/export"
	"github.com/meltemi-mesh/meltemi/filter/fields"
)

// Carrier is the configuration of the carrier filter, the one that a process has of
// itself.
type Carrier struct {
	// Path is the socket to which its listener is bound: a path, or a name behind @.
	Path string
	// Admin is where the process tells about itself by HTTP: "unix:" and an absolute
	// path, or "host:port" with the address of an interface, of which the port may be 0
	// for any; "": nowhere.
	Admin string
	// Push is where metrics are pushed to, nil: nowhere.
	Push *export.Push
}

// LoadCarrier reads {"path": "@name", "admin_address": "unix:/path", "metrics": {"otlp":
// {}}}, of which the first is required, and the last an [export.PushConfig]. A returned
// error is an *Error.
func LoadCarrier(raw []byte) (c Carrier, err error) {
	var cfg struct {
		Path    *string `json:"path"`
		Admin   string  `json:"admin_address"`
		Metrics *struct {
			OTLP *export.PushConfig `json:"otlp"`
		} `json:"metrics"`
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&cfg); err != nil {
		return c, &Error{Reason: strings.TrimPrefix(err.Error(), "json: ")}
	}
	if cfg.Path == nil || *cfg.Path == "" {
		return c, &Error{Path: "path", Reason: "required: the socket to which its listener is bound"}
	}
	if cfg.Admin != "" && !adminAddress(cfg.Admin) {
		return c, &Error{Path: "admin_address", Reason: "want unix:/PATH or IP:PORT, is " + strconv.Quote(cfg.Admin)}
	}
	c = Carrier{Path: *cfg.Path, Admin: cfg.Admin}
	switch {
	case cfg.Metrics == nil:
	case cfg.Metrics.OTLP == nil:
		return c, &Error{Path: "metrics.otlp", Reason: "required"}
	default:
		var first *fields.Error
		if c.Push, err = export.ParsePush(cfg.Metrics.OTLP, "metrics.otlp"); errors.As(err, &first) {
			return c, &Error{Path: first.Path, Reason: first.Reason}
		}
	}
	return c, nil
}

// adminAddress: anybody could connect to an abstract socket.
func adminAddress(s string) bool {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return len(path) > 1 && path[0] == '/'
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || net.ParseIP(host) == nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}
