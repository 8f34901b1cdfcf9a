// Package docs takes the fenced code blocks out of a Markdown file, so that
// tests can do what it tells its readers to do.
package docs

import (
	"regexp"
	"strings"
)

// Block is a fenced code block.
type Block struct {
	// Section is the heading above it, without its marks.
	Section string
	// Kind is the word behind the fence, "" if there is none. By convention sh is
	// to be executed, text is what the sh before it prints, yaml and go are parts
	// of files, and console is for the reader alone.
	Kind string
	// Text ends with a line break.
	Text string
}

var blocks = regexp.MustCompile("(?ms)^#+ ([^\n]*)$|^```(\\w*)\n(.*?)^```$")

// Blocks are the blocks of a text in their order.
func Blocks(text string) (bs []Block) {
	section := ""
	for _, m := range blocks.FindAllStringSubmatch(text, -1) {
		if m[1] != "" {
			section = m[1]
		} else {
			bs = append(bs, Block{section, m[2], m[3]})
		}
	}
	return bs
}

// Sample is the regular expression for what a block of kind text shows: … stands
// for the rest of a line, and on a line by itself for any number of lines.
func (b Block) Sample() string {
	s := regexp.MustCompile(`(?m)^…$`).ReplaceAllString(regexp.QuoteMeta(b.Text), "(?s:.*)")
	return "^" + strings.ReplaceAll(s, "…", "[^\n]*") + "$"
}
