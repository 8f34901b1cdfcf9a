package codectest

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// maxShown is how much of a property's value Describe shows, in bytes.
const maxShown = 60

// Describe prints what was decoded in one line, for golden files. Of a long
// value it prints the beginning and the length.
func Describe(m *codecs.Metadata) string { return describe(m, maxShown) }

func describe(m *codecs.Metadata, shown int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s id=%d", m.Type, m.ID)
	if m.StreamID != 0 {
		fmt.Fprintf(&b, " stream=%d", m.StreamID)
	}
	if m.Variant != 0 {
		fmt.Fprintf(&b, " variant=%d", m.Variant)
	}
	if m.FixedID {
		b.WriteString(" fixed")
	}
	if m.GoesAway {
		b.WriteString(" goes_away")
	}
	if m.NotProcessed {
		b.WriteString(" not_processed")
	}
	if m.MayClose {
		b.WriteString(" may_close")
	}
	if m.Failure != codecs.NoFailure {
		fmt.Fprintf(&b, " failure=%q", m.Failure)
	}
	if m.Retried {
		b.WriteString(" retried")
	}
	if m.Silent {
		b.WriteString(" silent")
	}
	if m.Lease != codecs.NotLeased {
		fmt.Fprintf(&b, " lease=%d", m.Lease)
	}
	if m.Code != 0 && m.Status != codecs.StatusOK { // of a success it is the same always
		fmt.Fprintf(&b, " code=%d", m.Code)
	}
	fmt.Fprintf(&b, " status=%d reply=%t size=%d+%d", m.Status, m.ExpectsReply, m.HeaderSize, m.BodySize)
	if op := m.AppendOperation(nil); len(op) > 0 {
		fmt.Fprintf(&b, " op=%s", op)
	}
	if m.Malformed != "" {
		fmt.Fprintf(&b, " malformed=%q", m.Malformed)
	}
	for _, p := range m.Properties() {
		if len(p.Value) > shown {
			fmt.Fprintf(&b, " %s=%q...(%d bytes)", p.Name, p.Value[:shown], len(p.Value))
		} else {
			fmt.Fprintf(&b, " %s=%q", p.Name, p.Value)
		}
	}
	return b.String()
}

// aspect is a part of the metadata that may be exempt from a comparison.
type aspect uint

const (
	sizes    aspect = 1 << iota // HeaderSize, BodySize
	private                     // Scratch, ReplyInfo
	identity                    // ID
	views                       // operation and properties
)

// difference tells in what b differs from a, "" if in nothing. Raw is not
// looked at.
func difference(a, b *codecs.Metadata, but aspect) string {
	differ := func(what string, x, y any) string { return fmt.Sprintf("%s is %v, not %v", what, y, x) }
	switch {
	case a.Type != b.Type:
		return differ("type", a.Type, b.Type)
	case a.Status != b.Status:
		return differ("status", a.Status, b.Status)
	case a.ExpectsReply != b.ExpectsReply:
		return differ("ExpectsReply", a.ExpectsReply, b.ExpectsReply)
	case a.FixedID != b.FixedID:
		return differ("FixedID", a.FixedID, b.FixedID)
	case a.GoesAway != b.GoesAway:
		return differ("GoesAway", a.GoesAway, b.GoesAway)
	case a.NotProcessed != b.NotProcessed:
		return differ("NotProcessed", a.NotProcessed, b.NotProcessed)
	case a.MayClose != b.MayClose:
		return differ("MayClose", a.MayClose, b.MayClose)
	case a.Code != b.Code:
		return differ("Code", a.Code, b.Code)
	case a.Failure != b.Failure:
		return differ("Failure", a.Failure, b.Failure)
	case a.Retried != b.Retried:
		return differ("Retried", a.Retried, b.Retried)
	case a.Silent != b.Silent:
		return differ("Silent", a.Silent, b.Silent)
	case a.Lease != b.Lease:
		return differ("Lease", a.Lease, b.Lease)
	case but&identity == 0 && a.ID != b.ID:
		return differ("id", a.ID, b.ID)
	case a.StreamID != b.StreamID:
		return differ("stream id", a.StreamID, b.StreamID)
	case a.Variant != b.Variant:
		return differ("variant", a.Variant, b.Variant)
	case but&sizes == 0 && (a.HeaderSize != b.HeaderSize || a.BodySize != b.BodySize):
		return differ("size", fmt.Sprintf("%d+%d", a.HeaderSize, a.BodySize), fmt.Sprintf("%d+%d", b.HeaderSize, b.BodySize))
	case a.Malformed != b.Malformed:
		return fmt.Sprintf("Malformed is %q, not %q", b.Malformed, a.Malformed)
	case but&private == 0 && a.Scratch != b.Scratch:
		return differ("Scratch", a.Scratch, b.Scratch)
	case but&private == 0 && !bytes.Equal(a.ReplyInfo, b.ReplyInfo):
		return fmt.Sprintf("ReplyInfo is %.80q, not %.80q", b.ReplyInfo, a.ReplyInfo)
	case but&views != 0:
		return ""
	}
	if x, y := a.AppendOperation(nil), b.AppendOperation(nil); !bytes.Equal(x, y) {
		return fmt.Sprintf("operation is %.80q, not %.80q", y, x)
	}
	if x, y := a.Method(), b.Method(); !bytes.Equal(x, y) {
		return fmt.Sprintf("method is %.80q, not %.80q", y, x)
	}
	return differenceOfProperties(a.Properties(), b.Properties())
}

func differenceOfProperties(a, b []codecs.Property) string {
	for i := range min(len(a), len(b)) {
		if !bytes.Equal(a[i].Name, b[i].Name) || !bytes.Equal(a[i].Value, b[i].Value) {
			return fmt.Sprintf("property %d is %.80q = %.80q, not %.80q = %.80q", i, b[i].Name, b[i].Value, a[i].Name, a[i].Value)
		}
	}
	if len(a) != len(b) {
		return fmt.Sprintf("there are %d properties, not %d", len(b), len(a))
	}
	return ""
}
