// Package ipam leases the addresses of a node's pod CIDRs to its pods, and
// remembers on disk which is whose.
//
// A lease is a host number: the same in every prefix, so that a pod's IPv4 and
// IPv6 addresses end alike and are taken and given back together. Never leased
// are number 0 (the network address), 1 (the node's router address, design
// decision 7) and the last of an IPv4 prefix (broadcast).
//
// Numbers are handed out in a circle, which the file remembers: an address that
// was given back rests until all others had their turn, so that late packets and
// caches for the pod before don't meet the pod after. Leases are scoped to the
// boot: no pod survives one, and a DEL that never came must not leak an address
// for longer.
//
// The file is behind what it tells of: Flush writes it every few seconds, and nobody
// waits for it. That is enough, since whoever leases keeps records of its holders
// that are ahead of a crash. It holds what those say (Hold) before it leases again, and
// releases who is not among them. What a crash can take is only whose turn it is.
//
// The pool does not know pods or containers; a holder is a name its user chose.
package ipam

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"vswitch/control"
	"vswitch/control/statefile"
)

// ErrExhausted: every address of the pool is leased.
var ErrExhausted = errors.New("no pod address is free")

// firstHost is the lowest number leased: after the network and the router address.
const firstHost = 2

// Config is what a Pool works with. All but Log is required.
type Config struct {
	Path   string         // of the file
	BootID string         // see BootID
	CIDRs  []netip.Prefix // this node's, at most one of each family
	Log    *slog.Logger   // nil: slog.Default()
}

// Pool leases addresses. Its methods may be called from any goroutine.
type Pool struct {
	cidrs []netip.Prefix
	limit uint64 // numbers are firstHost <= n < limit
	file  statefile.File
	boot  string

	writing sync.Mutex // one writer of the file at a time; taken before mu

	mu     sync.Mutex
	holder map[string]uint64 // number by holder; guarded by mu, as is all below
	used   map[uint64]string
	last   uint64                  // the number leased last: the next search starts after it
	alien  map[string][]netip.Addr // leases from CIDRs the node had before, kept until released
	ahead  bool                    // of the file
}

// state is the file.
type state struct {
	BootID string                  `json:"bootID"`
	CIDRs  []netip.Prefix          `json:"cidrs"`
	Last   uint64                  `json:"last"`
	Leases map[string]uint64       `json:"leases"`
	Alien  map[string][]netip.Addr `json:"alien,omitempty"`
}

const fileVersion = 1

// Open reads the leases of this boot. A damaged file is set aside and reported,
// and the pool starts empty: its user must then hold whatever it knows to be in
// use (Hold) before it leases.
func Open(cfg Config) (*Pool, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	p := &Pool{
		cidrs: slices.Clone(cfg.CIDRs), boot: cfg.BootID,
		file:   statefile.File{Path: cfg.Path, Kind: "ipam", Version: fileVersion},
		holder: map[string]uint64{}, used: map[uint64]string{}, alien: map[string][]netip.Addr{},
		last: firstHost - 1,
	}
	var err error
	if p.limit, err = hostLimit(cfg.CIDRs); err != nil {
		return nil, err
	}
	var s state
	var damaged *statefile.DamagedError
	switch err := p.file.Read(&s); {
	case errors.Is(err, fs.ErrNotExist):
		return p, nil
	case errors.As(err, &damaged):
		cfg.Log.Error("address leases lost; starting with none", "err", err)
		return p, nil
	case err != nil:
		return nil, fmt.Errorf("ipam: %w", err)
	}
	p.adopt(&s)
	return p, nil
}

// hostLimit is the first number that no prefix can lease any more.
func hostLimit(cidrs []netip.Prefix) (uint64, error) {
	if len(cidrs) == 0 {
		return 0, errors.New("ipam: no pod CIDR")
	}
	limit := uint64(1) << 32
	for _, c := range cidrs {
		size := control.Size(c)
		if c.Addr().Is4() {
			size-- // broadcast
		}
		limit = min(limit, size)
	}
	if limit <= firstHost {
		return 0, fmt.Errorf("ipam: pod CIDRs %v leave no address for a pod", cidrs)
	}
	return limit, nil
}

// adopt takes over what the file says, as far as it is of this boot. Leases in
// other CIDRs than today's belong to pods that still run with them.
func (p *Pool) adopt(s *state) {
	same := slices.Equal(s.CIDRs, p.cidrs)
	if same && s.Last >= firstHost && s.Last < p.limit {
		p.last = s.Last
	}
	if s.BootID != p.boot {
		return
	}
	maps.Copy(p.alien, s.Alien)
	for holder, n := range s.Leases {
		if same && n >= firstHost && n < p.limit && p.used[n] == "" {
			p.holder[holder], p.used[n] = n, holder
		} else {
			p.alien[holder] = addrsAt(s.CIDRs, n)
		}
	}
}

// Lease gives the holder an address of each family, the same until Release.
// errors.Is ErrExhausted: none is free.
func (p *Pool) Lease(holder string) ([]netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if addrs, ok := p.addrsOf(holder); ok {
		return addrs, nil
	}
	n, ok := p.next()
	if !ok {
		return nil, fmt.Errorf("ipam: %w: all %d of %v are leased", ErrExhausted, p.limit-firstHost, p.cidrs)
	}
	p.holder[holder], p.used[n], p.last = n, holder, n
	p.ahead = true
	return addrsAt(p.cidrs, n), nil
}

// next is the first free number after the last one leased.
func (p *Pool) next() (uint64, bool) {
	n := p.limit - firstHost
	if uint64(len(p.used)) >= n {
		return 0, false
	}
	for i := range n {
		if v := firstHost + (p.last-firstHost+1+i)%n; p.used[v] == "" && !p.alienAt(v) {
			return v, true
		}
	}
	return 0, false
}

// alienAt reports whether a lease that is no whole one of today's CIDRs has an
// address of number n all the same.
func (p *Pool) alienAt(n uint64) bool {
	for _, addrs := range p.alien {
		for _, c := range p.cidrs {
			if slices.Contains(addrs, control.AddrAt(c, n)) {
				return true
			}
		}
	}
	return false
}

// Hold leases given addresses to a holder: those of a pod that is known to run.
// It is refused if another holds one.
func (p *Pool) Hold(holder string, addrs []netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if have, ok := p.addrsOf(holder); ok {
		if slices.Equal(have, addrs) {
			return nil
		}
		return fmt.Errorf("ipam: %s holds %v already, not %v", holder, have, addrs)
	}
	n, ok := p.number(addrs)
	if !ok {
		p.alien[holder] = slices.Clone(addrs)
		p.ahead = true
		return nil
	}
	if other := p.used[n]; other != "" {
		return fmt.Errorf("ipam: %v are held by %s", addrs, other)
	}
	p.holder[holder], p.used[n] = n, holder
	p.ahead = true
	return nil
}

// number is the host number of addrs if they are a whole lease of today's CIDRs.
func (p *Pool) number(addrs []netip.Addr) (uint64, bool) {
	if len(addrs) != len(p.cidrs) {
		return 0, false
	}
	n, ok := control.HostNumber(p.cidrs[0], addrs[0])
	if !ok || n < firstHost || n >= p.limit || !slices.Equal(addrsAt(p.cidrs, n), addrs) {
		return 0, false
	}
	return n, true
}

// Release frees what the holder has; to have nothing is no error.
func (p *Pool) Release(holder string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.addrsOf(holder); !ok {
		return
	}
	if n, ok := p.holder[holder]; ok {
		delete(p.holder, holder)
		delete(p.used, n)
	}
	delete(p.alien, holder)
	p.ahead = true
}

// Addrs returns what the holder has.
func (p *Pool) Addrs(holder string) ([]netip.Addr, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addrsOf(holder)
}

func (p *Pool) addrsOf(holder string) ([]netip.Addr, bool) {
	if n, ok := p.holder[holder]; ok {
		return addrsAt(p.cidrs, n), true
	}
	addrs, ok := p.alien[holder]
	return slices.Clone(addrs), ok
}

// Holders lists who has a lease, sorted.
func (p *Pool) Holders() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := slices.AppendSeq(slices.Collect(maps.Keys(p.holder)), maps.Keys(p.alien))
	slices.Sort(out)
	return out
}

// Free is how many leases can still be made.
func (p *Pool) Free() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int(p.limit-firstHost) - len(p.used)
}

// Flush writes the file if something changed since it was written.
func (p *Pool) Flush() error { return p.write(false) }

// Save writes the file though nothing changed: for when it has gone.
func (p *Pool) Save() error { return p.write(true) }

// write writes what there is when it begins. Meanwhile addresses are leased and released.
func (p *Pool) write(unchanged bool) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	p.mu.Lock()
	s := state{BootID: p.boot, CIDRs: p.cidrs, Last: p.last, Leases: maps.Clone(p.holder), Alien: maps.Clone(p.alien)}
	ahead := p.ahead
	p.ahead = false
	p.mu.Unlock()
	if !ahead && !unchanged {
		return nil
	}
	if err := p.file.Write(s); err != nil {
		p.mu.Lock()
		p.ahead = p.ahead || ahead
		p.mu.Unlock()
		return fmt.Errorf("ipam: %w", err)
	}
	return nil
}

func addrsAt(cidrs []netip.Prefix, n uint64) []netip.Addr {
	out := make([]netip.Addr, len(cidrs))
	for i, c := range cidrs {
		out[i] = control.AddrAt(c, n)
	}
	return out
}

// BootID is the kernel's random name for this boot (random(4)).
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("ipam: boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
