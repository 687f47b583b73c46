package gateway

import (
	"io"
	"net"
	"testing"
)

// The pod is a netstack too and shares the cores: these figures are not those of a
// pod with a kernel. They are for comparing changes.

func BenchmarkEgressTCP(b *testing.B) {
	for _, direction := range []string{"upload", "download"} {
		b.Run(direction, func(b *testing.B) {
			_, n := start(b, nil)
			fam := families[0]
			const chunk = 1 << 20
			to := hostServer(b, fam, func(c *net.TCPConn) {
				if direction == "upload" {
					io.Copy(io.Discard, c)
					return
				}
				for buf := make([]byte, chunk); ; {
					if _, err := c.Write(buf); err != nil {
						return
					}
				}
			})
			c, err := n.Pod(pod4.String()).DialTCP(soon(b), to)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			buf := make([]byte, chunk)
			b.SetBytes(chunk)
			for b.Loop() {
				if direction == "upload" {
					_, err = c.Write(buf)
				} else {
					_, err = io.ReadFull(c, buf)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)*chunk*8/b.Elapsed().Seconds()/1e6, "Mb/s")
		})
	}
}

func BenchmarkEgressUDP(b *testing.B) {
	_, n := start(b, nil)
	to, _ := udpServer(b, families[0])
	c := n.Pod(pod4.String()).DialUDP(to)
	question := make([]byte, 64)
	for b.Loop() {
		ask(b, c, question)
	}
}
