package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vswitch/internal/lab"
)

// look takes what every process holds, and what every node dropped.
func (s *soak) look() {
	now := time.Now()
	for _, n := range s.nodes {
		s.lookAt(now, "keeper of "+n.Host, n.Daemon().Pid(), nil)
		pid, err := n.Dataplane()
		if err != nil {
			continue // killed just now
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		var self []struct {
			PID                   int
			Goroutines, LiveBytes float64
		}
		more := holding{}
		if n.Get(ctx, "process", &self) == nil && len(self) == 1 && self[0].PID == pid {
			more["goroutines"], more["live heap MiB"] = self[0].Goroutines, self[0].LiveBytes/(1<<20)
		}
		s.lookAt(now, fmt.Sprintf("dataplane of %s, process %d", n.Host, pid), pid, more)
		var drops []struct {
			Name  string
			Count uint64
		}
		if n.Get(ctx, "drops", &drops) == nil {
			s.mu.Lock()
			for _, d := range drops {
				s.drops[d.Name] = max(s.drops[d.Name], d.Count)
			}
			s.mu.Unlock()
		}
		cancel()
	}
}

// lookAt takes what one process holds, unless it has ended.
func (s *soak) lookAt(now time.Time, name string, pid int, more holding) {
	h, err := holdingOf(pid)
	if err != nil {
		return
	}
	maps.Copy(h, more)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen[pid] == nil {
		s.seen[pid] = &levels{name: name, begin: now, seen: map[string][]float64{}}
	}
	s.seen[pid].add(now, h)
}

// progress says how far it is, and sees that every long-lived connection moves.
func (s *soak) progress(done, total time.Duration) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience/2)
	defer cancel()
	for _, w := range s.watches {
		longest, err := w.lap(ctx)
		if err != nil {
			s.t.Errorf("%s: %v", w.name, err)
		}
		if longest > soakStall {
			s.t.Errorf("%s: a message took %v, more than %v", w.name, longest, soakStall)
		}
		s.worst = max(s.worst, longest)
	}
	var held []string
	for _, n := range s.nodes {
		if pid, err := n.Dataplane(); err == nil {
			if h, err := holdingOf(pid); err == nil {
				held = append(held, fmt.Sprintf("%s %.0f MiB %.0f fds", n.Host, h["private MiB"], h["descriptors"]))
			}
		}
	}
	s.mu.Lock()
	c := s.counts
	s.mu.Unlock()
	s.t.Logf("progress: soak %v of %v: %d pods (%d ADDs and DELs again), %d kills, %d upgrades, %d visits; longest message %v; %s",
		done.Round(time.Second), total, c.pods, c.again, c.kills, c.upgrades, c.visits, s.worst.Round(time.Millisecond), strings.Join(held, ", "))
}

// soakDrops are what a network loses that is healthy, but for its dataplane's deaths:
// what kernels say to groups nobody is in, the last packets to pods that go, those of
// connections that ended with a netstack, and the first packet of a client that visits
// both nodes and by chance from one port, which the second then replaces.
var soakDrops = []string{"multicast", "no-route", "no-flow", "source-taken"}

// judge holds what was seen in the whole run to what may be.
func (s *soak) judge() {
	s.t.Helper()
	judged := map[string]bool{}
	for _, pid := range slices.Sorted(maps.Keys(s.seen)) {
		l := s.seen[pid]
		if !l.judged() {
			continue
		}
		wrong, all := l.verdict()
		s.t.Log("progress: " + all)
		for _, w := range wrong {
			s.t.Error(w)
		}
		kind, _, _ := strings.Cut(l.name, ",")
		judged[kind] = true
	}
	for _, n := range s.nodes {
		for _, kind := range []string{"keeper of ", "dataplane of "} {
			if !judged[kind+n.Host] {
				s.t.Errorf("%s%s was not looked at for long enough", kind, n.Host)
			}
		}
		for _, line := range badLines(n.Daemon().Log()) {
			s.t.Errorf("node %s said: %s", n.Host, line)
		}
		s.judgeLeftovers(n)
	}
	for reason, count := range s.drops {
		if !slices.Contains(soakDrops, reason) {
			s.t.Errorf("%d frames dropped as %s", count, reason)
		}
	}
	s.t.Logf("progress: drops: %v", s.drops)
	if err := s.monitor.Stop(); err != nil {
		s.t.Error(err)
	}
	if said := s.monitor.Log(); said != "" {
		s.t.Errorf("a pod saw its interface change:\n%s", said)
	}
	if s.counts.kills == 0 || s.counts.pods == 0 || s.counts.visits == 0 {
		s.t.Errorf("nothing happened: %+v", s.counts)
	}
}

// judgeLeftovers wants nothing of pods that have gone: no lease, no record, no queue,
// which would keep their namespaces alive.
func (s *soak) judgeLeftovers(n *lab.Node) {
	s.t.Helper()
	stay := 0
	for _, p := range []*lab.Pod{s.a1, s.a2, s.b1, s.b2, s.far} {
		if p.Node == n {
			stay++
		}
	}
	s.eventually("nothing is left of pods that have gone", func() error {
		var leases struct {
			Data struct{ Leases map[string]uint64 }
		}
		var records struct{ Data struct{ Attachments []any } }
		for name, into := range map[string]any{"leases.json": &leases, "attachments.json": &records} {
			text, err := os.ReadFile(filepath.Join(n.StateDir(), name))
			if err == nil {
				err = json.Unmarshal(text, into)
			}
			if err != nil {
				return err
			}
		}
		dataplane, err := n.Dataplane()
		if err != nil {
			return err
		}
		var queues [2]float64
		for i, pid := range []int{n.Daemon().Pid(), dataplane} {
			h, err := holdingOf(pid)
			if err != nil {
				return err
			}
			queues[i] = h["TAP queues"] / float64(stay)
		}
		if len(leases.Data.Leases) != stay || len(records.Data.Attachments) != stay || queues[0] != queues[1] || queues[0] < 1 || queues[0] > 4 {
			return fmt.Errorf("node %s: leases %v, %d records, queues a pod: %v in the keeper, %v in the dataplane; want those of %d pods",
				n.Host, leases.Data.Leases, len(records.Data.Attachments), queues[0], queues[1], stay)
		}
		return nil
	})
}
