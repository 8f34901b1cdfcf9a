//go:build !race

package codectest

const raced = false
