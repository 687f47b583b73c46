package slirp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Forward is a port of the host that leads inside, as requests have it.
type Forward struct {
	ID        int        `json:"id"`
	Protocol  string     `json:"proto"` // "tcp" or "udp"
	HostAddr  netip.Addr `json:"host_addr"`
	HostPort  uint16     `json:"host_port"`
	GuestAddr netip.Addr `json:"guest_addr"`
	GuestPort uint16     `json:"guest_port"`
}

// Forwards opens and closes ports. One call at a time is made.
type Forwards interface {
	// Add opens a port that is not open, and gives it its ID.
	Add(Forward) (id int, err error)
	Remove(id int) error
	List() []Forward
}

const (
	maxRequestBytes = 4096 // slirp4netns(1)
	requestTimeout  = 5 * time.Second
	maxRequests     = 16 // at once; a client waits for its answer
)

// Serve answers requests until ctx ends. A connection is one request; clients close
// their side behind it, or not. Serve closes l.
func Serve(ctx context.Context, l net.Listener, f Forwards, log *slog.Logger) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var clients sync.WaitGroup
	defer clients.Wait()
	s := &server{forwards: f, room: make(chan struct{}, maxRequests)}
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			s.room <- struct{}{}
			clients.Go(func() {
				defer func() { <-s.room }()
				defer c.Close()
				s.serve(c)
			})
		case ctx.Err() != nil:
			return
		default:
			log.Warn("API socket can't take a client", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond): // out of descriptors, say
			}
		}
	}
}

type server struct {
	mu       sync.Mutex // one request at a time
	forwards Forwards
	room     chan struct{}
}

func (s *server) serve(c net.Conn) {
	c.SetDeadline(time.Now().Add(requestTimeout))
	// One more than allowed, so that one too long is not valid.
	text := json.NewDecoder(io.LimitReader(c, maxRequestBytes))
	var r request
	var answer any
	if err := text.Decode(&r); err != nil {
		answer = failure(fmt.Errorf("cannot parse JSON: %w", err))
	} else {
		s.mu.Lock()
		answer = s.answer(&r)
		s.mu.Unlock()
	}
	json.NewEncoder(c).Encode(answer) // to one that hung up: nobody wants it
}

type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
}

type object map[string]any

func failure(err error) object {
	return object{"error": object{"desc": "bad request: " + err.Error()}}
}

func (s *server) answer(r *request) object {
	switch r.Execute {
	case "add_hostfwd":
		f, err := parseForward(r.Arguments)
		if err != nil {
			return failure(fmt.Errorf("add_hostfwd: %w", err))
		}
		if f.ID, err = s.forwards.Add(f); err != nil {
			return failure(fmt.Errorf("add_hostfwd: %w", err))
		}
		return object{"return": object{"id": f.ID}}
	case "list_hostfwd":
		// A copy: the answer is written when others may ask for changes. And an empty list is [].
		return object{"return": object{"entries": append([]Forward{}, s.forwards.List()...)}}
	case "remove_hostfwd":
		var which struct {
			ID *int `json:"id"`
		}
		if err := json.Unmarshal(r.Arguments, &which); err != nil || which.ID == nil {
			return failure(errors.New("remove_hostfwd: bad arguments.id"))
		}
		if err := s.forwards.Remove(*which.ID); err != nil {
			return failure(fmt.Errorf("remove_hostfwd: %w", err))
		}
		return object{"return": object{}}
	}
	return failure(fmt.Errorf("unknown execute %q", r.Execute))
}

// parseForward reads the arguments of add_hostfwd. What is left out: every address of
// the host's, and the namespace's own.
func parseForward(text []byte) (f Forward, err error) {
	var a struct {
		Protocol  string `json:"proto"`
		HostAddr  string `json:"host_addr"`
		HostPort  int    `json:"host_port"`
		GuestAddr string `json:"guest_addr"`
		GuestPort int    `json:"guest_port"`
	}
	if err := json.Unmarshal(text, &a); err != nil {
		return f, fmt.Errorf("bad arguments: %w", err)
	}
	f.Protocol = a.Protocol
	if f.Protocol != "tcp" && f.Protocol != "udp" {
		return f, fmt.Errorf("bad arguments.proto %q", a.Protocol)
	}
	f.HostAddr = netip.IPv4Unspecified()
	if a.HostAddr != "" {
		if f.HostAddr, err = netip.ParseAddr(a.HostAddr); err != nil {
			return f, fmt.Errorf("bad arguments.host_addr %q", a.HostAddr)
		}
	}
	if a.GuestAddr != "" {
		if f.GuestAddr, err = netip.ParseAddr(a.GuestAddr); err != nil {
			return f, fmt.Errorf("bad arguments.guest_addr %q", a.GuestAddr)
		}
	}
	if f.HostPort, err = port("host_port", a.HostPort); err == nil {
		f.GuestPort, err = port("guest_port", a.GuestPort)
	}
	return f, err
}

func port(name string, n int) (uint16, error) {
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("bad arguments.%s %d", name, n)
	}
	return uint16(n), nil
}
