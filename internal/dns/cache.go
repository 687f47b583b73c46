package dns

import (
	"container/list"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxTTL bounds how long an answer is kept, whatever it says: a mistake
	// somewhere in the world is not to stay here for a week.
	maxTTL = time.Hour
	// maxNegativeTTL likewise for the absence of a name. RFC 2308 section 5 calls
	// one to three hours sensible; what was just created should be found sooner.
	maxNegativeTTL = 5 * time.Minute
	// failureTTL is how long a failure is kept: RFC 9520 section 3.2 wants a second
	// at least, so that a broken name is not asked for at line rate.
	failureTTL = time.Second
	// maxCachedBytes bounds one answer in the cache.
	maxCachedBytes = 16 << 10
)

// cache keeps answers, bounded by their number and by their bytes. What was not
// asked for longest goes first. A reply in it is never changed.
type cache struct {
	maxEntries, maxBytes int

	mu      sync.Mutex
	entries map[Question]*list.Element // guarded by mu
	order   list.List                  // guarded by mu: *cached, the last asked for in front
	bytes   int                        // guarded by mu: their lengths as messages
}

type cached struct {
	question Question
	reply    *Reply
	stored   time.Time
	ttl      time.Duration
	bytes    int
}

func newCache(maxEntries, maxBytes int) *cache {
	return &cache{maxEntries: maxEntries, maxBytes: maxBytes, entries: make(map[Question]*list.Element)}
}

// get finds an answer that is still good, with the time it has left in its records.
func (c *cache) get(q Question, now time.Time) (Reply, bool) {
	c.mu.Lock()
	e, ok := c.entries[q]
	if !ok {
		c.mu.Unlock()
		return Reply{}, false
	}
	entry := e.Value.(*cached)
	if now.Sub(entry.stored) >= entry.ttl {
		c.remove(e)
		c.mu.Unlock()
		return Reply{}, false
	}
	c.order.MoveToFront(e)
	c.mu.Unlock()
	return entry.reply.aged(now.Sub(entry.stored), entry.ttl), true
}

// put keeps an answer, if it may be kept. Questions with names of other letters
// are the caller's to make equal.
func (c *cache) put(q Question, r *Reply, now time.Time) {
	ttl := r.ttl()
	bytes := r.bytes()
	if ttl <= 0 || bytes > min(maxCachedBytes, c.maxBytes) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.entries[q]; ok {
		c.remove(old)
	}
	for len(c.entries) >= c.maxEntries || c.bytes+bytes > c.maxBytes {
		c.remove(c.order.Back())
	}
	c.entries[q] = c.order.PushFront(&cached{question: q, reply: r, stored: now, ttl: ttl, bytes: bytes})
	c.bytes += bytes
}

// remove drops an entry. Callers hold mu.
func (c *cache) remove(e *list.Element) {
	entry := c.order.Remove(e).(*cached)
	delete(c.entries, entry.question)
	c.bytes -= entry.bytes
}

func (c *cache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries)
}

// Reply is what resolvers say to a question.
type Reply struct {
	Rcode             int
	AuthenticatedData bool
	Answer, Ns, Extra []dns.RR
}

// ttl is how long the reply may be kept; zero: not at all.
func (r *Reply) ttl() time.Duration {
	switch r.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
	case dns.RcodeServerFailure:
		return failureTTL
	default:
		return 0
	}
	limit := maxTTL
	if r.negative() {
		// RFC 2308 section 5: the SOA record says for how long, and without one the
		// answer is not kept.
		limit = 0
		for _, rr := range r.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				limit = min(maxNegativeTTL, seconds(min(soa.Hdr.Ttl, soa.Minttl)))
			}
		}
	}
	for _, section := range [][]dns.RR{r.Answer, r.Ns, r.Extra} {
		for _, rr := range section {
			limit = min(limit, seconds(rr.Header().Ttl))
		}
	}
	return limit
}

// seconds reads a TTL; one with the top bit set is zero (RFC 2181 section 8).
func seconds(ttl uint32) time.Duration {
	if ttl > 1<<31-1 {
		return 0
	}
	return time.Duration(ttl) * time.Second
}

// negative: the name does not exist, or not with this type. A chain of aliases
// that ends nowhere is negative too.
func (r *Reply) negative() bool {
	if r.Rcode == dns.RcodeNameError || len(r.Answer) == 0 {
		return true
	}
	for _, rr := range r.Answer {
		if t := rr.Header().Rrtype; t != dns.TypeCNAME && t != dns.TypeDNAME && t != dns.TypeRRSIG {
			return false
		}
	}
	for _, rr := range r.Ns {
		if rr.Header().Rrtype == dns.TypeSOA {
			return true
		}
	}
	return false // the question was for the alias itself
}

func (r *Reply) bytes() int {
	n := 0
	for _, section := range [][]dns.RR{r.Answer, r.Ns, r.Extra} {
		for _, rr := range section {
			n += dns.Len(rr)
		}
	}
	return n + 64 // the question and the entry itself
}

// aged is a copy whose records have lived for age; none outlives the reply's ttl.
func (r *Reply) aged(age, ttl time.Duration) Reply {
	out := *r
	for _, section := range []*[]dns.RR{&out.Answer, &out.Ns, &out.Extra} {
		if *section == nil {
			continue
		}
		copies := make([]dns.RR, len(*section))
		for i, rr := range *section {
			copies[i] = dns.Copy(rr)
			h := copies[i].Header()
			h.Ttl = uint32(max(min(seconds(h.Ttl), maxTTL)-age, 0) / time.Second)
		}
		*section = copies
	}
	return out
}
