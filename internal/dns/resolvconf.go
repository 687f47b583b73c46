package dns

import (
	"bufio"
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// ResolverPort is where resolvers listen (IANA: domain).
	ResolverPort = 53
	// maxResolvers is how many of a file are used; resolv.conf(5) says three
	// (MAXNS), and some files have more in the hope that they count.
	maxResolvers = 8
	maxFileBytes = 64 << 10
	// lookInterval is how often the file is looked at, if at all.
	lookInterval = time.Second
)

// ResolvConf follows a file in the form of resolv.conf(5), of which it takes the
// "nameserver" lines.
type ResolvConf struct {
	path   string
	read   func(path string) ([]byte, error)
	except []netip.Addr
	log    *slog.Logger

	mu      sync.Mutex
	looked  time.Time        // guarded by mu
	content []byte           // guarded by mu: as last read
	known   bool             // guarded by mu: servers come from the file
	servers []netip.AddrPort // guarded by mu
}

// NewResolvConf follows the file at path, as read gives it; nil: os.ReadFile. Addresses in except are never used: the
// server's own, or it would ask itself. Nil log: slog.Default().
func NewResolvConf(path string, read func(path string) ([]byte, error), except []netip.Addr, log *slog.Logger) *ResolvConf {
	if read == nil {
		read = os.ReadFile
	}
	if log == nil {
		log = slog.Default()
	}
	return &ResolvConf{path: path, read: read, except: except, log: log}
}

// Servers are the file's resolvers, of the last second or newer. A file that can't
// be read leaves the last ones; with none ever read it is this host's port 53, as
// resolv.conf(5) says.
func (c *ResolvConf) Servers() []netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); c.looked.IsZero() || now.Sub(c.looked) >= lookInterval {
		c.looked = now
		c.look()
	}
	return c.servers
}

// look reads the file, if it changed. Comparing a few hundred bytes once a second
// is safer than its times: it is often a link, replaced or mounted over.
func (c *ResolvConf) look() {
	content, err := c.read(c.path)
	if err != nil {
		if c.servers == nil {
			c.log.Warn("no file that names resolvers: this host's own is asked", "path", c.path, "err", err)
			c.servers = c.usable([]netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), ResolverPort)})
		}
		return
	}
	if c.known && bytes.Equal(content, c.content) {
		return
	}
	servers := c.usable(parseResolvConf(content[:min(len(content), maxFileBytes)]))
	if c.known && len(servers) == 0 {
		return // being written just now
	}
	c.content, c.known, c.servers = content, true, servers
	c.log.Info("resolvers for other names", "path", c.path, "addr", fmt.Sprint(servers))
}

func (c *ResolvConf) usable(servers []netip.AddrPort) []netip.AddrPort {
	servers = slices.DeleteFunc(servers, func(s netip.AddrPort) bool { return slices.Contains(c.except, s.Addr()) })
	return servers[:min(len(servers), maxResolvers)]
}

// parseResolvConf reads "nameserver ADDR" lines; what can't be read is left out, as
// the C library does.
func parseResolvConf(content []byte) []netip.AddrPort {
	var servers []netip.AddrPort
	for lines := bufio.NewScanner(bytes.NewReader(content)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(a.Unmap(), ResolverPort))
		}
	}
	return servers
}
