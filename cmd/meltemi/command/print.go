package command

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// printer prints frames.
type printer struct {
	w         io.Writer
	protocol  string
	ids       bool // the protocol has ids
	json, hex bool
}

func (p *printer) print(offset int, m *codecs.Metadata, raw []byte) error {
	props := m.Properties() // first: what loads them may find the message malformed
	if p.json {
		return json.NewEncoder(p.w).Encode(p.object(offset, m, props, raw))
	}
	return p.text(offset, m, props, raw)
}

func statusName(s codecs.Status) string {
	switch s {
	case codecs.StatusOK:
		return "ok"
	case codecs.StatusBusinessException:
		return "business_exception"
	default:
		return "error"
	}
}

func hasStatus(m *codecs.Metadata) bool { return m.Type == codecs.Response || m.Type == codecs.Error }

func ofStream(m *codecs.Metadata) bool {
	switch m.Type {
	case codecs.StreamInit, codecs.StreamData, codecs.StreamCloseOneWay, codecs.StreamCloseTwoWay:
		return true
	default:
		return m.StreamID != 0
	}
}

func (p *printer) text(offset int, m *codecs.Metadata, props []codecs.Property, raw []byte) error {
	var s strings.Builder
	fmt.Fprintf(&s, "%d: %s, %d bytes (%d+%d)", offset, m.Type, len(raw), m.HeaderSize, m.BodySize)
	if p.ids {
		fmt.Fprintf(&s, ", id %d", m.ID)
	}
	if ofStream(m) {
		fmt.Fprintf(&s, ", stream %d", m.StreamID)
	}
	if m.Variant != 0 {
		fmt.Fprintf(&s, ", variant %d", m.Variant)
	}
	if hasStatus(m) {
		fmt.Fprintf(&s, ", status %s", statusName(m.Status))
	}
	if m.Code != 0 {
		fmt.Fprintf(&s, ", code %d", m.Code)
	}
	if m.Failure != codecs.NoFailure {
		fmt.Fprintf(&s, ", %s", m.Failure)
	}
	if m.Retried {
		s.WriteString(", retried")
	}
	if m.Type == codecs.Heartbeat && m.ExpectsReply {
		s.WriteString(", expects a reply")
	}
	if m.GoesAway {
		s.WriteString(", goes away")
	}
	if m.NotProcessed {
		s.WriteString(", not processed")
	}
	if m.MayClose {
		s.WriteString(", may close")
	}
	if op := m.AppendOperation(nil); len(op) > 0 {
		fmt.Fprintf(&s, ", operation %q", op)
	}
	s.WriteByte('\n')
	if m.Malformed != "" {
		fmt.Fprintf(&s, "    malformed: %s\n", m.Malformed)
	}
	for _, prop := range props {
		fmt.Fprintf(&s, "    %s = %q\n", name(prop.Name), prop.Value)
	}
	if p.hex {
		dump(&s, raw, offset, -1)
	}
	_, err := io.WriteString(p.w, s.String())
	return err
}

// name quotes a property's name where it would be misread.
func name(b []byte) string {
	q := strconv.Quote(string(b))
	if len(b) > 0 && q == `"`+string(b)+`"` && !strings.ContainsAny(q, " =") {
		return string(b)
	}
	return q
}

// object is a frame in JSON.
type object struct {
	Protocol     string     `json:"protocol"`
	Offset       int        `json:"offset"`
	Length       int        `json:"length"`
	HeaderSize   int        `json:"header_size"`
	BodySize     int        `json:"body_size"`
	Type         string     `json:"type"`
	ID           *uint64    `json:"id,omitempty"`
	StreamID     *uint64    `json:"stream_id,omitempty"`
	Variant      uint8      `json:"variant,omitempty"`
	Status       string     `json:"status,omitempty"`
	Code         int32      `json:"code,omitempty"`
	Failure      string     `json:"failure,omitempty"`
	Retried      bool       `json:"retried,omitempty"`
	ExpectsReply bool       `json:"expects_reply,omitempty"`
	GoesAway     bool       `json:"goes_away,omitempty"`
	NotProcessed bool       `json:"not_processed,omitempty"`
	MayClose     bool       `json:"may_close,omitempty"`
	Operation    string     `json:"operation,omitempty"`
	Malformed    string     `json:"malformed,omitempty"`
	Properties   []property `json:"properties,omitempty"`
	Hex          string     `json:"hex,omitempty"`
}

// property is one of an object. What is not UTF-8 is in base64, under another
// name.
type property struct {
	Name        *string `json:"name,omitempty"`
	NameBase64  []byte  `json:"name_base64,omitempty"`
	Value       *string `json:"value,omitempty"`
	ValueBase64 []byte  `json:"value_base64,omitempty"`
}

func (p *printer) object(offset int, m *codecs.Metadata, props []codecs.Property, raw []byte) *object {
	o := &object{
		Protocol: p.protocol, Offset: offset, Length: len(raw), HeaderSize: m.HeaderSize, BodySize: m.BodySize,
		Type: m.Type.String(), Variant: m.Variant, Operation: string(m.AppendOperation(nil)), Malformed: m.Malformed,
		ExpectsReply: m.Type == codecs.Heartbeat && m.ExpectsReply,
		GoesAway:     m.GoesAway, NotProcessed: m.NotProcessed, MayClose: m.MayClose, Code: m.Code, Retried: m.Retried,
	}
	if m.Failure != codecs.NoFailure {
		o.Failure = m.Failure.String()
	}
	if p.ids {
		o.ID = &m.ID
	}
	if ofStream(m) {
		o.StreamID = &m.StreamID
	}
	if hasStatus(m) {
		o.Status = statusName(m.Status)
	}
	for _, prop := range props {
		var x property
		x.Name, x.NameBase64 = text(prop.Name)
		x.Value, x.ValueBase64 = text(prop.Value)
		o.Properties = append(o.Properties, x)
	}
	if p.hex {
		o.Hex = hex.EncodeToString(raw)
	}
	return o
}

func text(b []byte) (*string, []byte) {
	if !utf8.Valid(b) {
		return nil, b
	}
	s := string(b)
	return &s, nil
}

// dump writes b, which begins at an offset, in hexadecimal and ASCII. The line
// with the offset mark, if there is one, begins with an arrow.
func dump(s *strings.Builder, b []byte, offset, mark int) {
	const width = 16
	for ; len(b) > 0; offset += width {
		row := b[:min(len(b), width)]
		b = b[len(row):]
		sign := ' '
		if mark >= offset && mark < offset+len(row) {
			sign = '>'
		}
		half := min(len(row), width/2)
		ascii := bytes.Clone(row)
		for i, c := range ascii {
			if c < ' ' || c > '~' {
				ascii[i] = '.'
			}
		}
		fmt.Fprintf(s, "  %c %08x  %-23s  %-23s  |%s|\n", sign, offset,
			fmt.Sprintf("% x", row[:half]), fmt.Sprintf("% x", row[half:]), ascii)
	}
}

// excerpt shows the bytes around the offset at of the frame that begins at
// start.
func excerpt(b []byte, start, at int) string {
	const before, most = 32, 96
	from := start + max(at-start-before, 0)/16*16
	var s strings.Builder
	dump(&s, b[from:min(len(b), from+most)], from, min(at, len(b)-1))
	return strings.TrimSuffix(s.String(), "\n")
}
