package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

var (
	r1 = netip.MustParseAddrPort("192.0.2.1:53")
	r2 = netip.MustParseAddrPort("192.0.2.2:53")
	r3 = netip.MustParseAddrPort("[2001:db8::3]:53")
)

// world is an Exchanger of resolvers in memory.
type world struct {
	mu    sync.Mutex
	asked []string                                // "server name type[ tcp]"
	say   map[netip.AddrPort]func(*dns.Msg) error // fills in the answer; none: never answers
	delay time.Duration
}

func (w *world) Exchange(ctx context.Context, to netip.AddrPort, q *dns.Msg, tcp bool) (*dns.Msg, error) {
	w.mu.Lock()
	line := fmt.Sprintf("%v %s %s", to, q.Question[0].Name, dns.TypeToString[q.Question[0].Qtype])
	if tcp {
		line += " tcp"
	}
	w.asked = append(w.asked, line)
	say := w.say[to]
	w.mu.Unlock()
	r := new(dns.Msg).SetReply(q)
	if say == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	select {
	case <-time.After(w.delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := say(r); err != nil {
		return nil, err
	}
	r.Truncated = r.Truncated && !tcp
	return r, nil
}

func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.asked)
}

func records(lines ...string) []dns.RR {
	var out []dns.RR
	for _, l := range lines {
		rr, err := dns.NewRR(l)
		if err != nil {
			panic(err)
		}
		out = append(out, rr)
	}
	return out
}

// has answers every question with these records.
func has(lines ...string) func(*dns.Msg) error {
	return func(r *dns.Msg) error { r.Answer = records(lines...); return nil }
}

func fails(rcode int) func(*dns.Msg) error {
	return func(r *dns.Msg) error { r.Rcode = rcode; return nil }
}

// inBubble runs a test with a forwarder over resolvers that w plays.
func inBubble(t *testing.T, w *world, cfg ForwarderConfig, servers []netip.AddrPort, test func(t *testing.T, f *Forwarder)) {
	synctest.Test(t, func(t *testing.T) {
		cfg.Exchanger, cfg.Resolvers = w, func() []netip.AddrPort { return servers }
		cfg.Log = slog.New(slog.DiscardHandler)
		f := NewForwarder(cfg)
		defer f.Close()
		test(t, f)
	})
}

var www = Question{Name: "www.example.com.", Type: dns.TypeA}

func TestAnswersAreKeptAsLongAsTheySay(t *testing.T) {
	const soa = "example.com. 100 IN SOA ns.example.com. root.example.com. 1 2 3 4 "
	for _, c := range []struct {
		name string
		say  func(*dns.Msg) error
		keep time.Duration
	}{
		{"as the record says", has("www.example.com. 30 IN A 192.0.2.80"), 30 * time.Second},
		{"as the shortest record says", has("www.example.com. 30 IN CNAME w.example.com.", "w.example.com. 7 IN A 192.0.2.80"), 7 * time.Second},
		{"no longer than an hour", has("www.example.com. 999999 IN A 192.0.2.80"), time.Hour},
		{"not at all, if it says so", has("www.example.com. 0 IN A 192.0.2.80"), 0},
		{"not at all, if the TTL is negative", has("www.example.com. 4294967295 IN A 192.0.2.80"), 0},
		{"no such name, as the SOA's minimum says", func(r *dns.Msg) error {
			r.Rcode, r.Ns = dns.RcodeNameError, records(soa+"20")
			return nil
		}, 20 * time.Second},
		{"no such type, as the SOA's TTL says", func(r *dns.Msg) error { r.Ns = records(soa + "500"); return nil }, 100 * time.Second},
		{"no such name, five minutes at most", func(r *dns.Msg) error {
			r.Rcode, r.Ns = dns.RcodeNameError, records("example.com. 9999 IN SOA ns.example.com. root.example.com. 1 2 3 4 9999")
			return nil
		}, 5 * time.Minute},
		{"no such name, without an SOA: not at all", fails(dns.RcodeNameError), 0},
		{"an alias to nothing, as the SOA says", func(r *dns.Msg) error {
			r.Answer, r.Ns = records("www.example.com. 300 IN CNAME w.example.com."), records(soa+"20")
			return nil
		}, 20 * time.Second},
		{"a failure, a second", fails(dns.RcodeServerFailure), time.Second},
		{"a refusal, not at all", fails(dns.RcodeRefused), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{say: map[netip.AddrPort]func(*dns.Msg) error{r1: c.say}}
			inBubble(t, w, ForwarderConfig{}, []netip.AddrPort{r1}, func(t *testing.T, f *Forwarder) {
				first := f.Ask(t.Context(), pod, www)
				asked := w.count()
				if c.keep > 0 {
					time.Sleep(c.keep - time.Millisecond)
					again := f.Ask(t.Context(), pod, Question{Name: "WWW.Example.com.", Type: dns.TypeA})
					if w.count() != asked {
						t.Fatalf("asked again %v after the answer", c.keep-time.Millisecond)
					}
					if again.Rcode != first.Rcode || len(again.Answer) != len(first.Answer) || len(again.Ns) != len(first.Ns) {
						t.Errorf("kept %v of %v", again, first)
					}
					for _, rr := range again.Answer {
						if ttl := rr.Header().Ttl; time.Duration(ttl)*time.Second > maxTTL {
							t.Errorf("TTL %d is left", ttl)
						}
					}
					time.Sleep(time.Millisecond)
				}
				f.Ask(t.Context(), pod, www)
				if w.count() == asked {
					t.Errorf("kept longer than %v", c.keep)
				}
			})
		})
	}
}

func TestTTLsCountDown(t *testing.T) {
	w := &world{say: map[netip.AddrPort]func(*dns.Msg) error{r1: has("www.example.com. 30 IN A 192.0.2.80")}}
	inBubble(t, w, ForwarderConfig{}, []netip.AddrPort{r1}, func(t *testing.T, f *Forwarder) {
		for _, want := range []uint32{30, 20, 10} {
			if r := f.Ask(t.Context(), pod, www); len(r.Answer) != 1 || r.Answer[0].Header().Ttl != want {
				t.Errorf("got %v, want TTL %d", r.Answer, want)
			}
			time.Sleep(10 * time.Second)
		}
	})
}

func TestManyWhoAskTheSameAreOneQuestion(t *testing.T) {
	w := &world{say: map[netip.AddrPort]func(*dns.Msg) error{r1: has("www.example.com. 30 IN A 192.0.2.80")}, delay: time.Second}
	inBubble(t, w, ForwarderConfig{}, []netip.AddrPort{r1}, func(t *testing.T, f *Forwarder) {
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				r := f.Ask(t.Context(), netip.AddrFrom4([4]byte{10, 244, 0, byte(i)}), www)
				if len(r.Answer) != 1 {
					t.Errorf("got %v", r)
				}
				r.Answer[0].Header().Ttl = 77 // each has records of its own
			})
		}
		all.Wait()
		if got := f.Stats(); w.count() != 1 || got.Asked != 1 || got.Joined != 99 {
			t.Errorf("asked %d times: %+v", w.count(), got)
		}
	})
}

func TestResolversStandInForEachOther(t *testing.T) {
	good := has("www.example.com. 0 IN A 192.0.2.80")
	for _, c := range []struct {
		name  string
		say   map[netip.AddrPort]func(*dns.Msg) error
		rcode int
		took  time.Duration
		again time.Duration // the second question
	}{
		{"the first answers", map[netip.AddrPort]func(*dns.Msg) error{r1: good, r2: good}, 0, 0, 0},
		{"the first is silent; then it is asked last", map[netip.AddrPort]func(*dns.Msg) error{r2: good, r3: good}, 0, 1500 * time.Millisecond, 0},
		{"two are silent", map[netip.AddrPort]func(*dns.Msg) error{r3: good}, 0, 3 * time.Second, 0},
		{"the first refuses the connection", map[netip.AddrPort]func(*dns.Msg) error{
			r1: func(*dns.Msg) error { return errors.New("connection refused") }, r2: good,
		}, 0, 0, 0},
		{"the first fails", map[netip.AddrPort]func(*dns.Msg) error{r1: fails(dns.RcodeServerFailure), r2: good}, 0, 0, 0},
		{"the first refuses", map[netip.AddrPort]func(*dns.Msg) error{r1: fails(dns.RcodeRefused), r2: good}, 0, 0, 0},
		{"all refuse", map[netip.AddrPort]func(*dns.Msg) error{
			r1: fails(dns.RcodeRefused), r2: fails(dns.RcodeRefused), r3: fails(dns.RcodeRefused),
		}, dns.RcodeRefused, 0, 0},
		{"all are silent", nil, dns.RcodeServerFailure, forwardTimeout, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, &world{say: c.say}, ForwarderConfig{}, []netip.AddrPort{r1, r2, r3}, func(t *testing.T, f *Forwarder) {
				for _, want := range []time.Duration{c.took, c.again} {
					begin := time.Now()
					if r := f.Ask(t.Context(), pod, www); r.Rcode != c.rcode {
						t.Errorf("got %s, want %s", dns.RcodeToString[r.Rcode], dns.RcodeToString[c.rcode])
					}
					if took := time.Since(begin); took != want {
						t.Errorf("took %v, want %v", took, want)
					}
				}
			})
		})
	}
}

func TestASilentResolverIsTriedAgainLater(t *testing.T) {
	w := &world{say: map[netip.AddrPort]func(*dns.Msg) error{r2: has("www.example.com. 0 IN A 192.0.2.80")}}
	inBubble(t, w, ForwarderConfig{}, []netip.AddrPort{r1, r2}, func(t *testing.T, f *Forwarder) {
		f.Ask(t.Context(), pod, www)
		time.Sleep(firstAvoidance)
		w.mu.Lock()
		w.say[r1], w.asked = w.say[r2], nil
		w.mu.Unlock()
		f.Ask(t.Context(), pod, www)
		if len(w.asked) != 1 || w.asked[0] != "192.0.2.1:53 www.example.com. A" {
			t.Errorf("asked %q, want the first", w.asked)
		}
	})
}

func TestALostDatagramIsAskedAgain(t *testing.T) {
	lost := false
	w := &world{}
	w.say = map[netip.AddrPort]func(*dns.Msg) error{r1: func(r *dns.Msg) error {
		if !lost {
			lost = true
			return context.DeadlineExceeded
		}
		r.Answer = records("www.example.com. 30 IN A 192.0.2.80")
		return nil
	}}
	inBubble(t, w, ForwarderConfig{}, []netip.AddrPort{r1}, func(t *testing.T, f *Forwarder) {
		if r := f.Ask(t.Context(), pod, www); len(r.Answer) != 1 || w.count() != 2 {
			t.Errorf("got %v after %d attempts", r, w.count())
		}
	})
}

func TestWhatDoesNotFitIsAskedByTCP(t *testing.T) {
	w := &world{say: map[netip.AddrPort]func(*dns.Msg) error{r1: func(r *dns.Msg) error {
		r.Answer, r.Truncated = records("www.example.com. 30 IN A 192.0.2.80"), true
		return nil
	}}}
	inBubble(t, w, ForwarderConfig{}, []netip.AddrPort{r1}, func(t *testing.T, f *Forwarder) {
		if r := f.Ask(t.Context(), pod, www); len(r.Answer) != 1 || w.count() != 2 || w.asked[1] != "192.0.2.1:53 www.example.com. A tcp" {
			t.Errorf("got %v, asked %q", r, w.asked)
		}
	})
}

func TestOnePodLeavesRoomForOthers(t *testing.T) {
	const places = 8
	w := &world{} // silent
	inBubble(t, w, ForwarderConfig{Questions: places}, []netip.AddrPort{r1}, func(t *testing.T, f *Forwarder) {
		var waiting sync.WaitGroup
		refused := make(chan int, 2*places)
		for i := range 2 * places {
			waiting.Go(func() {
				begin := time.Now()
				f.Ask(t.Context(), pod, Question{Name: fmt.Sprintf("a%d.example.", i), Type: dns.TypeA})
				if time.Since(begin) == 0 {
					refused <- i
				}
			})
		}
		synctest.Wait()
		if got := len(refused); got != 2*places-places/2 {
			t.Errorf("%d of %d questions refused at once, want all but half of the %d places", got, 2*places, places)
		}
		begin := time.Now()
		f.Ask(t.Context(), addr("10.244.0.3"), Question{Name: "b.example.", Type: dns.TypeA})
		if time.Since(begin) == 0 {
			t.Error("another pod's question was refused")
		}
		waiting.Wait()
		if f.questions.Taken() != 0 {
			t.Errorf("%d places are taken after all were answered", f.questions.Taken())
		}
	})
}

func TestTheCacheIsBounded(t *testing.T) {
	w := &world{say: map[netip.AddrPort]func(*dns.Msg) error{r1: func(r *dns.Msg) error {
		r.Answer = records(r.Question[0].Name + " 30 IN TXT x")
		return nil
	}}}
	inBubble(t, w, ForwarderConfig{CacheEntries: 10}, []netip.AddrPort{r1}, func(t *testing.T, f *Forwarder) {
		for i := range 100 {
			f.Ask(t.Context(), pod, Question{Name: fmt.Sprintf("n%d.example.", i), Type: dns.TypeTXT})
			f.Ask(t.Context(), pod, Question{Name: "n0.example.", Type: dns.TypeTXT}) // what is asked for stays
		}
		if got := f.Stats(); got.Cached != 10 || got.Asked != 100 {
			t.Errorf("%+v, want 10 kept and each asked once", got)
		}
	})
	inBubble(t, w, ForwarderConfig{CacheBytes: 1000}, []netip.AddrPort{r1}, func(t *testing.T, f *Forwarder) {
		for i := range 100 {
			f.Ask(t.Context(), pod, Question{Name: fmt.Sprintf("n%d.example.", i), Type: dns.TypeTXT})
		}
		if f.cache.bytes > 1000 || f.cache.len() == 0 {
			t.Errorf("%d bytes in %d answers, want 1000 at most", f.cache.bytes, f.cache.len())
		}
	})
}

func TestCloseEndsWhatWaits(t *testing.T) {
	inBubble(t, &world{}, ForwarderConfig{}, []netip.AddrPort{r1}, func(t *testing.T, f *Forwarder) {
		done := make(chan Reply)
		go func() { done <- f.Ask(t.Context(), pod, www) }()
		synctest.Wait()
		begin := time.Now()
		f.Close()
		if r := <-done; r.Rcode != dns.RcodeServerFailure || time.Since(begin) != 0 {
			t.Errorf("got %v after %v", r, time.Since(begin))
		}
		if r := f.Ask(t.Context(), pod, Question{Name: "x.", Type: dns.TypeA}); r.Rcode != dns.RcodeServerFailure {
			t.Errorf("after Close: %v", r)
		}
	})
}

func TestNoResolversIsAFailure(t *testing.T) {
	inBubble(t, &world{}, ForwarderConfig{}, nil, func(t *testing.T, f *Forwarder) {
		if r := f.Ask(t.Context(), pod, www); r.Rcode != dns.RcodeServerFailure {
			t.Errorf("got %v", r)
		}
	})
}

func TestOtherNamesAreForwarded(t *testing.T) {
	w := &world{say: map[netip.AddrPort]func(*dns.Msg) error{r1: func(r *dns.Msg) error {
		r.Answer, r.AuthenticatedData = records("www.example.com. 30 IN A 192.0.2.80"), true
		return nil
	}}}
	inBubble(t, w, ForwarderConfig{}, []netip.AddrPort{r1}, func(t *testing.T, f *Forwarder) {
		s := newTestServer(t, f)
		q := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
		if r := ask(t, s, q, false); len(r.Answer) != 1 || r.Authoritative || !r.RecursionAvailable || r.AuthenticatedData {
			t.Errorf("got %v", r)
		}
		q.AuthenticatedData = true
		if r := ask(t, s, q, false); !r.AuthenticatedData {
			t.Errorf("asked for AD: got %v", r)
		}
		q = new(dns.Msg).SetQuestion("out.db.svc.cluster.local.", dns.TypeA)
		r := ask(t, s, q, false)
		if len(r.Answer) != 2 || r.Answer[0].Header().Rrtype != dns.TypeCNAME || rest(r.Answer[1]) != "www.example.com. A 192.0.2.80" || !r.Authoritative {
			t.Errorf("external name: got %v", r)
		}
		q.RecursionDesired = false
		if r := ask(t, s, q, false); len(r.Answer) != 1 || r.Rcode != dns.RcodeSuccess {
			t.Errorf("external name without recursion: got %v", r)
		}
		q = new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
		q.RecursionDesired = false
		if r := ask(t, s, q, false); r.Rcode != dns.RcodeRefused {
			t.Errorf("without recursion: got %v", r)
		}
		if r := ask(t, s, new(dns.Msg).SetQuestion("1.2.0.192.in-addr.arpa.", dns.TypePTR), false); r.Rcode != dns.RcodeSuccess {
			t.Errorf("an address outside: got %v", r)
		}
		for _, a := range w.asked {
			if a == "192.0.2.1:53 6.1.244.10.in-addr.arpa. PTR" {
				t.Error("a question about the cluster left it")
			}
		}
	})
}

func TestAnExternalNameThatDoesNotExist(t *testing.T) {
	w := &world{say: map[netip.AddrPort]func(*dns.Msg) error{r1: fails(dns.RcodeNameError)}}
	inBubble(t, w, ForwarderConfig{}, []netip.AddrPort{r1}, func(t *testing.T, f *Forwarder) {
		r := ask(t, newTestServer(t, f), new(dns.Msg).SetQuestion("out.db.svc.cluster.local.", dns.TypeA), false)
		if r.Rcode != dns.RcodeNameError || len(r.Answer) != 1 { // RFC 6604: the code is of the chain's end
			t.Errorf("got %v", r)
		}
	})
}
