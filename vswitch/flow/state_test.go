package flow

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"vswitch/internal/wire"
)

// Each transcript is a connection's packets, one a word: > forward, < reply, then
// TCP flags by their first letters, or nothing; a number lets so many seconds
// pass. After each packet stands the state that follows.
var transcripts = []struct {
	name  string
	proto uint8
	text  string
}{
	{"TCP, opened and closed by the client", wire.ProtoTCP,
		">S syn-sent <SA syn-received >A established <A established >FA half-closed-forward <A half-closed-forward <FA time-wait >A time-wait"},
	{"TCP, closed by the server", wire.ProtoTCP,
		">S syn-sent <SA syn-received >A established <FA half-closed-reply >A half-closed-reply >FA time-wait"},
	{"TCP, data with the last ACK of the handshake", wire.ProtoTCP,
		">S syn-sent <SA syn-received >PA established"},
	{"TCP, FIN with the last ACK of the handshake", wire.ProtoTCP,
		">S syn-sent <SA syn-received >FA half-closed-forward"},
	{"TCP, both FINs cross", wire.ProtoTCP,
		">S syn-sent <SA syn-received >A established >FA half-closed-forward <FA time-wait"},
	{"TCP, a FIN is sent again", wire.ProtoTCP,
		">S syn-sent <SA syn-received >A established >FA half-closed-forward >FA half-closed-forward <FA time-wait <FA time-wait"},
	{"TCP, SYNs sent again", wire.ProtoTCP,
		">S syn-sent >S syn-sent <SA syn-received >S syn-received <SA syn-received >A established <SA established"},
	{"TCP, both sides open at once", wire.ProtoTCP,
		">S syn-sent <S syn-received >SA syn-received <SA syn-received >A established"},
	{"TCP, refused", wire.ProtoTCP, ">S syn-sent <RA closed"},
	{"TCP, reset when established", wire.ProtoTCP, ">S syn-sent <SA syn-received >A established <R closed >A closed"},
	{"TCP, an answer without SYN proves nothing", wire.ProtoTCP, ">S syn-sent <A syn-sent >A syn-sent"},
	{"TCP, a FIN in the handshake holds nothing", wire.ProtoTCP, ">S syn-sent >FA syn-sent <FA syn-sent"},
	{"TCP, picked up in the middle", wire.ProtoTCP, ">A midstream >A midstream <A established"},
	{"TCP, a flood of ACKs without answer", wire.ProtoTCP, ">A midstream >FA midstream >A midstream"},
	{"TCP, picked up at its end", wire.ProtoTCP, ">A midstream <FA half-closed-reply >FA time-wait"},
	{"TCP, picked up at SYN ACK", wire.ProtoTCP, ">SA midstream <A established"},
	{"TCP, picked up at a reset", wire.ProtoTCP, ">R closed"},
	{"TCP, SYN in an established connection is the peer's to judge", wire.ProtoTCP,
		">S syn-sent <SA syn-received >A established >S established <A established >R closed"},

	{"UDP, no answer", wire.ProtoUDP, "> udp-single > udp-single"},
	{"UDP, question and answer", wire.ProtoUDP, "> udp-single < udp-replied"},
	{"UDP, A and AAAA from one socket", wire.ProtoUDP, "> udp-single > udp-single 1 < udp-replied < udp-replied"},
	{"UDP, a stream", wire.ProtoUDP, "> udp-single < udp-replied 3 > udp-stream"},
	{"UDP, a stream one way only", wire.ProtoUDP, "> udp-single 3 > udp-single 3 > udp-single"},
	{"UDP, answered late", wire.ProtoUDP, "> udp-single 3 < udp-replied > udp-stream"},

	{"SCTP", wire.ProtoSCTP, "> sctp-single > sctp-single < sctp-replied > sctp-replied"},
	{"echo, IPv4", wire.ProtoICMP, "> echo < echo"},
	{"echo, IPv6", wire.ProtoICMPv6, "> echo < echo"},
	{"another protocol", wire.ProtoESP, "> other < other"},
}

var tcpFlagLetters = map[rune]uint8{'S': wire.SYN, 'A': wire.ACK, 'F': wire.FIN, 'R': wire.RST, 'P': wire.PSH}

func TestStatesFollowThePackets(t *testing.T) {
	for _, tc := range transcripts {
		t.Run(tc.name, func(t *testing.T) {
			table := newTable(t, Config{Connections: 16})
			k := key(tc.proto, "192.0.2.1:1000", "192.0.2.2:80")
			tick := uint32(1)
			var got strings.Builder
			for i, word := range strings.Fields(tc.text) {
				if seconds := uint32(0); word[0] >= '0' && word[0] <= '9' {
					fmt.Sscan(word, &seconds)
					tick += seconds * 10
					fmt.Fprintf(&got, "%s ", word)
				}
				if word[0] != '>' && word[0] != '<' {
					continue
				}
				var flags uint8
				for _, letter := range word[1:] {
					flags |= tcpFlagLetters[letter]
				}
				if i == 0 {
					mustInsert(t, table, direct(k), flags, tick)
				} else {
					tuple := k
					if word[0] == '<' {
						tuple = k.Reverse()
					}
					hit, ok := lookup(table, tuple, tick)
					if !ok {
						t.Fatalf("packet %q finds no connection", word)
					}
					table.Track(&hit, flags, 1, 60, tick)
				}
				hit, _ := lookup(table, k, tick)
				fmt.Fprintf(&got, "%s %v ", word, hit.State)
			}
			if strings.TrimSpace(got.String()) != tc.text {
				t.Errorf("got  %s\nwant %s", got.String(), tc.text)
			}
		})
	}
}

// Workers read the clock each for itself: one may be a tick behind the one that saw the
// flow's first packet. A question and its two answers are no stream for that.
func TestAWorkerBehindTheFirstMakesNoStream(t *testing.T) {
	for _, born := range []uint32{100, 0, 1 << 31} {
		table := newTable(t, Config{Connections: 16})
		k := key(wire.ProtoUDP, "192.0.2.1:1000", "192.0.2.2:53")
		mustInsert(t, table, direct(k), 0, born)
		for range 2 {
			hit, _ := lookup(table, k.Reverse(), born-1)
			table.Track(&hit, 0, 1, 60, born-1)
		}
		if hit, _ := lookup(table, k, born); hit.State != UDPReplied {
			t.Errorf("begun at tick %d, answered twice at the tick before: %v, want %v", born, hit.State, UDPReplied)
		}
	}
}

// How long each state may be idle, in seconds, by transcript. The numbers stand
// here once more on purpose: they are promises to operators.
func TestIdleConnectionsExpireByState(t *testing.T) {
	for _, tc := range []struct {
		proto   uint8
		packets string
		seconds uint32
	}{
		{wire.ProtoTCP, ">S", 120},
		{wire.ProtoTCP, ">S <SA", 60},
		{wire.ProtoTCP, ">S <SA >A", 24 * 3600},
		{wire.ProtoTCP, ">A", 300},
		{wire.ProtoTCP, ">S <SA >A >FA", 3600},
		{wire.ProtoTCP, ">S <SA >A <FA", 3600},
		{wire.ProtoTCP, ">S <SA >A >FA <FA", 120},
		{wire.ProtoTCP, ">S <RA", 10},
		{wire.ProtoUDP, ">", 30},
		{wire.ProtoUDP, "> <", 30},
		{wire.ProtoUDP, "> < 3 >", 120},
		{wire.ProtoSCTP, ">", 30},
		{wire.ProtoSCTP, "> <", 210},
		{wire.ProtoICMP, "> <", 30},
		{wire.ProtoICMPv6, ">", 30},
		{wire.ProtoESP, ">", 600},
	} {
		// Around the wrap of the tick counter as well, in 13 years.
		for _, start := range []uint32{1, 1<<32 - 50, 1<<31 - 50} {
			t.Run(fmt.Sprintf("proto %d %s from tick %d", tc.proto, tc.packets, start), func(t *testing.T) {
				table := newTable(t, Config{Connections: 16})
				k := key(tc.proto, "192.0.2.1:1000", "192.0.2.2:80")
				tick := start
				for i, word := range strings.Fields(tc.packets) {
					if word == "3" {
						tick += 30
						continue
					}
					var flags uint8
					for _, letter := range word[1:] {
						flags |= tcpFlagLetters[letter]
					}
					if i == 0 {
						mustInsert(t, table, direct(k), flags, tick)
						continue
					}
					tuple := k
					if word[0] == '<' {
						tuple = k.Reverse()
					}
					hit, _ := lookup(table, tuple, tick)
					table.Track(&hit, flags, 1, 60, tick)
				}
				if n := table.Expire(tick+tc.seconds*10, 100); n != 0 {
					t.Errorf("gone at %d s", tc.seconds)
				}
				if n := table.Expire(tick+tc.seconds*10+1, 100); n != 1 {
					t.Errorf("still there after %d s", tc.seconds)
				}
				if _, ok := lookup(table, k, tick); ok {
					t.Error("expired and found")
				}
				checkEmpty(t, table)
			})
		}
	}
}

func TestAPacketInEitherDirectionKeepsAConnection(t *testing.T) {
	table := newTable(t, Config{Connections: 16, Timeouts: Timeouts{UDPSingle: 10 * time.Second}})
	k := key(wire.ProtoUDP, "192.0.2.1:1000", "192.0.2.2:53")
	mustInsert(t, table, direct(k), 0, 0)
	for tick := uint32(90); tick < 1000; tick += 180 {
		lookup(table, k, tick)
		lookup(table, k.Reverse(), tick+90)
		if table.Expire(tick+180, 16) != 0 {
			t.Fatalf("expired at tick %d, idle for %d", tick+180, 90)
		}
	}
}

func TestExpireVisitsAllRecordsInTurns(t *testing.T) {
	const n = 1000
	table := newTable(t, Config{Connections: n, PerOwner: n})
	for i := range uint32(n) {
		mustInsert(t, table, numbered(i), wire.SYN, 1)
	}
	tick := uint32(1 + 10*120 + 1)
	for range n / 10 {
		if got := table.Expire(tick, 10); got != 10 {
			t.Fatalf("removed %d with a budget of 10", got)
		}
	}
	if got := table.Expire(tick, 10); got != 0 {
		t.Errorf("removed %d more", got)
	}
	checkEmpty(t, table)
}

func TestASweeperBehindTheWorkersExpiresNothingNew(t *testing.T) {
	table := newTable(t, Config{Connections: 16})
	mustInsert(t, table, numbered(0), wire.SYN, 1000)
	if table.Expire(990, 16) != 0 {
		t.Error("a connection seen after the sweeper's tick expired")
	}
}

func TestEveryStateHasANameAndATimeout(t *testing.T) {
	var timeouts Timeouts
	if err := timeouts.validate(); err != nil {
		t.Fatal(err)
	}
	ticks := timeouts.ticks()
	seen := map[string]bool{}
	for s := range states {
		if s.String() == "" || seen[s.String()] {
			t.Errorf("state %d is named %q", s, s.String())
		}
		if ticks[s] == 0 {
			t.Errorf("%v has no timeout", s)
		}
		seen[s.String()] = true
	}
}
