package dns

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"vswitch/internal/share"
)

// Defaults, chosen by us.
const (
	defaultCacheEntries = 10000
	defaultCacheBytes   = 4 << 20 // as messages; decoded they take some four times as much
	defaultQuestions    = 1024    // waiting for resolvers; half of it for one pod that asks alone
	defaultExchanges    = 256     // with resolvers at once: a descriptor and a goroutine each

	// forwardTimeout is how long a question may take, all attempts together: less
	// than the five seconds after which stub resolvers ask again (resolv.conf(5)).
	forwardTimeout = 4500 * time.Millisecond
)

// Question is what is asked of resolvers.
type Question struct {
	Name             string // any letters
	Type             uint16
	DNSSECOK         bool // RFC 3225
	CheckingDisabled bool // RFC 4035 section 3.2.2
}

// ForwarderConfig is what a forwarder is built from. Zero means the default.
type ForwarderConfig struct {
	// Resolvers names those to ask, the first first. It is called for every question
	// that the cache does not answer.
	Resolvers func() []netip.AddrPort
	Exchanger Exchanger // default: Sockets

	CacheEntries int // 10,000
	CacheBytes   int // 4 MiB of messages
	Questions    int // 1,024 waiting, all pods
	Exchanges    int // 256 at once with resolvers

	// Log gets changes of state, never questions. Nil: slog.Default().
	Log *slog.Logger
}

// Forwarder asks the node's resolvers. However many ask the same at once, it is
// asked upstream once.
type Forwarder struct {
	cache     *cache
	resolvers *upstreams
	questions *share.Pool[netip.Addr]
	exchanges chan struct{} // a token each

	ctx     context.Context // done when the forwarder closes
	cancel  context.CancelFunc
	working sync.WaitGroup

	mu    sync.Mutex
	calls map[Question]*call // guarded by mu

	asked, hits, joined, refused, failed atomic.Uint64
}

// call is one question on its way, and all who wait for it.
type call struct {
	done  chan struct{}
	reply *Reply // set when done is closed
}

// ForwarderStats are counters since NewForwarder.
type ForwarderStats struct {
	Asked   uint64 // upstream
	Hits    uint64 // answered from the cache
	Joined  uint64 // waited for another's question
	Refused uint64 // too many were waiting: answered with a failure
	Failed  uint64 // no resolver gave an answer
	Cached  int    // answers kept now
}

// NewForwarder makes one. Close ends it.
func NewForwarder(cfg ForwarderConfig) *Forwarder {
	for _, d := range []struct {
		v *int
		d int
	}{
		{&cfg.CacheEntries, defaultCacheEntries}, {&cfg.CacheBytes, defaultCacheBytes},
		{&cfg.Questions, defaultQuestions}, {&cfg.Exchanges, defaultExchanges},
	} {
		if *d.v == 0 {
			*d.v = d.d
		}
	}
	if cfg.Exchanger == nil {
		cfg.Exchanger = Sockets{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	f := &Forwarder{
		cache:     newCache(cfg.CacheEntries, cfg.CacheBytes),
		resolvers: newUpstreams(cfg.Resolvers, cfg.Exchanger, cfg.Log),
		questions: share.New[netip.Addr](int64(cfg.Questions)),
		exchanges: make(chan struct{}, cfg.Exchanges),
		calls:     make(map[Question]*call),
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// Close abandons what is under way and waits for it.
func (f *Forwarder) Close() {
	f.cancel()
	f.working.Wait()
}

// Stats reads the counters, each by itself.
func (f *Forwarder) Stats() ForwarderStats {
	return ForwarderStats{
		Asked: f.asked.Load(), Hits: f.hits.Load(), Joined: f.joined.Load(),
		Refused: f.refused.Load(), Failed: f.failed.Load(), Cached: f.cache.len(),
	}
}

var failure = Reply{Rcode: dns.RcodeServerFailure}

// Ask answers a question of a pod's, from the cache or by a resolver. The records
// are the caller's. A pod that has more than its share waiting gets a failure at
// once, as does everybody when no resolver answers within forwardTimeout.
func (f *Forwarder) Ask(ctx context.Context, pod netip.Addr, q Question) Reply {
	q.Name = strings.ToLower(q.Name)
	if r, ok := f.cache.get(q, time.Now()); ok {
		f.hits.Add(1)
		return r
	}
	if !f.questions.Take(pod, 1) {
		f.refused.Add(1)
		return failure
	}
	defer f.questions.Give(pod, 1)
	c, ok := f.join(q)
	if !ok {
		return failure
	}
	select {
	case <-c.done:
		return c.reply.aged(0, maxTTL)
	case <-ctx.Done():
		return failure
	}
}

// join finds the question among those on their way, or sends it. False: the
// forwarder is closing.
func (f *Forwarder) join(q Question) (*call, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.calls[q]; c != nil {
		f.joined.Add(1)
		return c, true
	}
	if f.ctx.Err() != nil {
		return nil, false
	}
	c := &call{done: make(chan struct{})}
	f.calls[q] = c
	f.working.Go(func() { f.carry(q, c) })
	return c, true
}

// carry takes one question to its answer.
func (f *Forwarder) carry(q Question, c *call) {
	reply := f.resolve(q)
	f.cache.put(q, reply, time.Now())
	c.reply = reply
	f.mu.Lock()
	delete(f.calls, q)
	f.mu.Unlock()
	close(c.done)
}

func (f *Forwarder) resolve(q Question) *Reply {
	ctx, cancel := context.WithTimeout(f.ctx, forwardTimeout)
	defer cancel()
	select {
	case f.exchanges <- struct{}{}:
		defer func() { <-f.exchanges }()
	case <-ctx.Done():
		f.failed.Add(1)
		return &failure
	}
	f.asked.Add(1)
	m := f.resolvers.ask(ctx, q)
	if m == nil {
		f.failed.Add(1)
		return &failure
	}
	r := &Reply{Rcode: m.Rcode, AuthenticatedData: m.AuthenticatedData, Answer: m.Answer, Ns: m.Ns}
	for _, rr := range m.Extra {
		if rr.Header().Rrtype != dns.TypeOPT { // it is between us and the resolver
			r.Extra = append(r.Extra, rr)
		}
	}
	return r
}
