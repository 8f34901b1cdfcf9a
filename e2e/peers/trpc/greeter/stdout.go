package greeter

import (
	"log"
	"os"
	"syscall"

	tlog "trpc.group/trpc-go/trpc-go/log"
)

// Stdout returns the standard output and sends what tRPC-Go logs there, from its
// very start, to the standard error.
func Stdout() *os.File {
	tlog.SetLevel("0", tlog.LevelError)
	fd, err := syscall.Dup(syscall.Stdout)
	if err != nil {
		log.Fatal(err)
	}
	if err := syscall.Dup3(syscall.Stderr, syscall.Stdout, 0); err != nil {
		log.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "stdout")
}
