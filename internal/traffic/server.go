package traffic

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
)

// maxSessions bounds the UDP sinks remembered; the oldest are forgotten.
const maxSessions = 1024

// Server answers on one address, TCP and UDP.
type Server struct {
	name string
	tcp  net.Listener
	udp  *net.UDPConn

	mu    sync.Mutex // guards conns
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

// Listen opens a server that calls itself name at address, a host:port. With a
// port of 0, TCP's choice is taken for UDP as well.
//
// An empty host listens on every address of both families, and answers UDP from
// whichever the route back prefers: on a machine of several, name one.
func Listen(name, address string) (*Server, error) {
	tcp, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	udpAddr, err := net.ResolveUDPAddr("udp", tcp.Addr().String())
	if err != nil {
		tcp.Close()
		return nil, err
	}
	if host, _, _ := net.SplitHostPort(address); host == "" {
		udpAddr.IP = nil
	}
	udp, err := net.ListenUDP("udp", udpAddr)
	if err != nil {
		tcp.Close()
		return nil, err
	}
	udp.SetReadBuffer(4 << 20) // as much as the system allows: a smaller one only loses more
	return &Server{name: name, tcp: tcp, udp: udp, conns: map[net.Conn]bool{}}, nil
}

// Addr is where the server listens.
func (s *Server) Addr() netip.AddrPort { return s.tcp.Addr().(*net.TCPAddr).AddrPort() }

// Serve answers until ctx ends, then closes everything and waits for it.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	udp := make(chan error, 1)
	go func() { udp <- s.serveUDP() }()
	err := s.serveTCP()
	s.close()
	err = errors.Join(err, <-udp)
	s.wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *Server) close() {
	s.tcp.Close()
	s.udp.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

func (s *Server) serveTCP() error {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return err
		}
		s.mu.Lock()
		if s.conns == nil {
			s.mu.Unlock()
			c.Close()
			return net.ErrClosed
		}
		s.conns[c] = true
		s.wg.Add(1)
		s.mu.Unlock()
		go func() {
			defer s.wg.Done()
			s.handle(c)
			c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		}()
	}
}

// handle serves one connection. Its errors are the client's to notice.
func (s *Server) handle(c net.Conn) {
	r := bufio.NewReaderSize(c, 256<<10)
	line, err := r.ReadString('\n')
	if err != nil {
		return
	}
	switch strings.TrimSpace(line) {
	case "who":
		fmt.Fprintln(c, s.who(c.RemoteAddr()))
	case "echo":
		buf := make([]byte, 64<<10)
		for {
			n, err := r.Read(buf)
			if _, werr := c.Write(buf[:n]); err != nil || werr != nil {
				return
			}
		}
	case "sink":
		sum := crc32.New(castagnoli)
		n, err := io.Copy(sum, r)
		if err == nil {
			fmt.Fprintln(c, n, sum.Sum32())
		}
	}
}

// who is the server's name and the client's address, without the port.
func (s *Server) who(client net.Addr) string {
	a, err := netip.ParseAddrPort(client.String())
	if err != nil {
		return s.name + " " + client.String()
	}
	return s.name + " " + a.Addr().Unmap().WithZone("").String()
}

// udpSink is what one session's sink received.
type udpSink struct{ datagrams, bytes uint64 }

func (s *Server) serveUDP() error {
	sinks := map[uint64]*udpSink{}
	var order []uint64
	buf := make([]byte, 64<<10)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		if n < udpHeaderBytes {
			continue
		}
		session := binary.BigEndian.Uint64(buf[1:])
		answer := buf[:n]
		switch buf[0] {
		case 'e':
		case 'w':
			answer = append(buf[:udpHeaderBytes:udpHeaderBytes], s.who(net.UDPAddrFromAddrPort(from))...)
		case 's':
			k := sinks[session]
			if k == nil {
				if len(order) == maxSessions {
					delete(sinks, order[0])
					order = order[1:]
				}
				k = &udpSink{}
				sinks[session] = k
				order = append(order, session)
			}
			k.datagrams++
			k.bytes += uint64(n)
			continue
		case 'q':
			var k udpSink
			if got := sinks[session]; got != nil {
				k = *got
			}
			answer = binary.BigEndian.AppendUint64(buf[:udpHeaderBytes:udpHeaderBytes], k.datagrams)
			answer = binary.BigEndian.AppendUint64(answer, k.bytes)
		default:
			continue
		}
		// An answer that can't be sent is a message lost; the client counts it.
		s.udp.WriteToUDPAddrPort(answer, from)
	}
}
