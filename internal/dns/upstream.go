package dns

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// A resolver that did not answer is asked after the others for this long,
	// doubled with each failure that follows.
	firstAvoidance = 2 * time.Second
	lastAvoidance  = 30 * time.Second
	// minAttempts: a lost datagram should not lose the question.
	minAttempts = 2
)

// Exchanger takes a query to a resolver and brings the answer back. It is called
// from many goroutines at once, must return when ctx ends, and returns answers to
// this very query alone.
type Exchanger interface {
	Exchange(ctx context.Context, to netip.AddrPort, q *dns.Msg, tcp bool) (*dns.Msg, error)
}

// upstreams are the resolvers in use. Which of them answer is found out by asking.
type upstreams struct {
	list     func() []netip.AddrPort
	exchange Exchanger
	log      *slog.Logger

	mu    sync.Mutex
	state map[netip.AddrPort]*health // guarded by mu; who answers has no entry
}

type health struct {
	failures int
	until    time.Time // avoided
}

func newUpstreams(list func() []netip.AddrPort, x Exchanger, log *slog.Logger) *upstreams {
	return &upstreams{list: list, exchange: x, log: log, state: make(map[netip.AddrPort]*health)}
}

// order is the resolvers in the order in which to ask them: as listed, those to be
// avoided last, of them first the one whose time is nearest to its end.
func (u *upstreams) order(now time.Time) []netip.AddrPort {
	servers := slices.Clone(u.list())
	u.mu.Lock()
	defer u.mu.Unlock()
	avoided := func(s netip.AddrPort) time.Duration {
		if h := u.state[s]; h != nil {
			return max(h.until.Sub(now), 0)
		}
		return 0
	}
	slices.SortStableFunc(servers, func(a, b netip.AddrPort) int { return cmp.Compare(avoided(a), avoided(b)) })
	return servers
}

// ask tries the resolvers until one answers; nil: none did. An answer that only
// says that the resolver can't or won't is the last resort.
func (u *upstreams) ask(ctx context.Context, q Question) *dns.Msg {
	servers := u.order(time.Now())
	if len(servers) == 0 {
		return nil
	}
	attempts := max(minAttempts, len(servers))
	each := forwardTimeout / time.Duration(attempts)
	var unwilling *dns.Msg
	for i := range attempts {
		if ctx.Err() != nil {
			break
		}
		server := servers[i%len(servers)]
		actx, cancel := context.WithTimeout(ctx, each)
		m, err := u.askOne(actx, server, q)
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				u.failed(server, err)
			}
			continue
		}
		u.answered(server)
		switch m.Rcode {
		case dns.RcodeSuccess, dns.RcodeNameError:
			return m
		}
		unwilling = m
	}
	return unwilling
}

// askOne asks by UDP, then by TCP if the answer did not fit. A resolver that
// stumbles over EDNS is asked without (RFC 6891 section 7).
func (u *upstreams) askOne(ctx context.Context, to netip.AddrPort, q Question) (*dns.Msg, error) {
	m := message(q)
	r, err := u.exchange.Exchange(ctx, to, m, false)
	if err != nil {
		return nil, err
	}
	if r.Rcode == dns.RcodeFormatError && r.IsEdns0() == nil {
		m.Extra = nil
		m.Id = dns.Id()
		if r, err = u.exchange.Exchange(ctx, to, m, false); err != nil {
			return nil, err
		}
	}
	if !r.Truncated {
		return r, nil
	}
	m.Id = dns.Id()
	return u.exchange.Exchange(ctx, to, m, true)
}

func message(q Question) *dns.Msg {
	m := new(dns.Msg).SetQuestion(q.Name, q.Type)
	m.CheckingDisabled = q.CheckingDisabled
	m.AuthenticatedData = true // RFC 6840 section 5.7: say whether you validated
	m.SetEdns0(MaxUDPBytes, q.DNSSECOK)
	return m
}

func (u *upstreams) failed(server netip.AddrPort, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	h := u.state[server]
	if h == nil {
		h = &health{}
		u.state[server] = h
		u.forgetUnlisted()
		u.log.Warn("resolver does not answer; others are asked first", "addr", server, "err", err)
	}
	h.until = time.Now().Add(min(firstAvoidance<<min(h.failures, 8), lastAvoidance))
	h.failures++
}

func (u *upstreams) answered(server netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state[server] != nil {
		delete(u.state, server)
		u.log.Info("resolver answers again", "addr", server)
	}
}

// forgetUnlisted drops what is known of resolvers that are no longer in use.
// Callers hold mu.
func (u *upstreams) forgetUnlisted() {
	listed := u.list()
	for s := range u.state {
		if !slices.Contains(listed, s) {
			delete(u.state, s)
		}
	}
}

// answers reports whether r is the answer to q (RFC 5452 section 9.1).
func answers(r, q *dns.Msg) bool {
	return r.Response && r.Id == q.Id && len(r.Question) == 1 && len(q.Question) == 1 &&
		r.Question[0].Qtype == q.Question[0].Qtype && r.Question[0].Qclass == q.Question[0].Qclass &&
		strings.EqualFold(r.Question[0].Name, q.Question[0].Name)
}
