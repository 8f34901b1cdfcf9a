package main

import "net"

// serve answers every request that comes on l, in one write for all that came
// together.
func serve(l net.Listener, p *protocol) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go echo(c, p)
	}
}

func echo(c net.Conn, p *protocol) {
	defer c.Close()
	in := make([]byte, 0, 64<<10)
	out := make([]byte, 0, 64<<10)
	for {
		if len(in) == cap(in) {
			in = append(in, 0)[:len(in)]
		}
		n, err := c.Read(in[len(in):cap(in)])
		if err != nil {
			return
		}
		in = in[:len(in)+n]
		out = out[:0]
		b := in
		for {
			n := p.next(b)
			if n == 0 {
				break
			}
			out = p.reply(out, b[:n])
			b = b[n:]
		}
		in = in[:copy(in, b)]
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}
