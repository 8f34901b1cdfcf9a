package consistent

import "fmt"

// Entries tells a table's, in their order: "hash host" of a ring, "host" of Maglev.
func (t *Table) Entries() (entries []string) {
	switch s := t.slots.(type) {
	case ring:
		for _, e := range s {
			entries = append(entries, fmt.Sprint(e.hash, e.host))
		}
	case maglev:
		for _, host := range s {
			entries = append(entries, fmt.Sprint(host))
		}
	}
	return entries
}
