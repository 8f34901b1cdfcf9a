package config

import (
	"bytes"
	"encoding/json"
	"strings"
)

// LoadCarrier reads the configuration of the carrier filter, {"path": "@name"}:
// the socket to which its listener is bound. A returned error is an *Error.
func LoadCarrier(raw []byte) (path string, err error) {
	var cfg struct {
		Path *string `json:"path"`
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&cfg); err != nil {
		return "", &Error{Reason: strings.TrimPrefix(err.Error(), "json: ")}
	}
	if cfg.Path == nil || *cfg.Path == "" {
		return "", &Error{Path: "path", Reason: "required: the socket to which its listener is bound"}
	}
	return *cfg.Path, nil
}
