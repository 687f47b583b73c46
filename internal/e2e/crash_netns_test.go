package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vswitch/internal/lab"
)

const crashServices = `
apiVersion: v1
kind: Service
metadata: {name: entered, namespace: default}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: waits}
  ports: [{port: 80, targetPort: 7}]
---
apiVersion: v1
kind: Service
metadata: {name: proxied, namespace: default, annotations: {vswitch/mode: proxy}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: waits}
  ports: [{port: 80, targetPort: 7}]
`

// resetWithin is how long a program may wait, idle, for what ended with the dataplane, once
// another is there. How long that takes on a busy machine is not what this test is about.
const resetWithin = time.Second

// ends collects connections and how each one's reader was told of its end.
type ends struct {
	t  *testing.T
	wg sync.WaitGroup

	mu     sync.Mutex
	open   int                  // guarded by mu
	told   map[string]time.Time // guarded by mu
	errors map[string]error     // guarded by mu
}

// reads waits for the end of a connection on which nothing comes.
func (e *ends) reads(name string, conn net.Conn) {
	e.mu.Lock()
	e.open++
	e.mu.Unlock()
	e.t.Cleanup(func() { conn.Close() })
	e.wg.Go(func() {
		_, err := conn.Read(make([]byte, 1))
		e.mu.Lock()
		defer e.mu.Unlock()
		e.told[name], e.errors[name] = time.Now(), err
	})
}

// TestACrashResetsWhatEndsWithIt kills node a's dataplane while connections that end in
// it are idle both ways: whoever reads, in a pod or outside, is told at once, by a
// reset and not by an orderly end.
func TestACrashResetsWhatEndsWithIt(t *testing.T) {
	c := newCluster(t)
	outside, err := c.lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	e := &ends{t: t, told: map[string]time.Time{}, errors: map[string]error{}}
	accepted := 0
	// serve accepts one connection after another and reads.
	serve := func(name string, ns *lab.Namespace, port uint16) {
		listenTCP(t, ns, netip.AddrPortFrom(netip.IPv6Unspecified(), port), func(conn net.Conn) {
			// The first byte says that it has come all the way.
			if _, err := conn.Read(make([]byte, 1)); err != nil {
				return
			}
			e.mu.Lock()
			accepted++
			name := fmt.Sprintf("%s %d", name, accepted)
			e.mu.Unlock()
			e.reads(name, conn)
			e.wg.Wait()
		})
	}
	serve("outside's server", outside.Namespace, 7)
	near := c.pod(0, "near", map[string]string{"app": "waits"})
	far := c.pod(1, "far", map[string]string{"app": "waits"})
	serve("near pod", near.Namespace, 7)
	serve("far pod", far.Namespace, 7)
	c.apply(crashServices)
	entered, proxied := c.service("entered"), c.service("proxied")
	connections := 0
	connect := func(name string, from *lab.Namespace, to netip.AddrPort) {
		t.Helper()
		c.eventually(name, func() error {
			conn, err := dial(from, "tcp", netip.AddrPort{}, to)
			if err != nil {
				return err
			}
			if _, err = conn.Write([]byte{1}); err != nil {
				return err
			}
			e.reads(name, conn)
			return nil
		})
		connections++
	}
	for _, family := range []int{4, 6} {
		node, beyond := c.nodes[0].Underlay4, outside.Underlay4
		if family == 6 {
			node, beyond = c.nodes[0].Underlay6, outside.Underlay6
		}
		connect(fmt.Sprintf("pod to outside, IPv%d", family), c.a1.Namespace, netip.AddrPortFrom(beyond, 7))
		for i := range 4 { // by turns to both endpoints, near and far
			connect(fmt.Sprintf("node port, IPv%d, %d", family, i), outside.Namespace, netip.AddrPortFrom(node, entered.nodePort(t, "")))
			connect(fmt.Sprintf("proxy mode, IPv%d, %d", family, i), c.a1.Namespace, netip.AddrPortFrom(proxied.ip(family), 80))
		}
	}
	c.eventually("every server has its connections", func() error {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.open != 2*connections || len(e.told) > 0 {
			return fmt.Errorf("%d of %d ends, %v told", e.open, 2*connections, e.errors)
		}
		return nil
	})
	pid, err := c.nodes[0].Dataplane()
	if err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.eventually("another dataplane", func() error {
		if strings.Count(c.nodes[0].Daemon().Log(), "vswitch: ready") < 2 {
			return errors.New("none is ready")
		}
		return nil
	})
	away := time.Since(killed)
	c.eventually("everybody is told", func() error {
		e.mu.Lock()
		defer e.mu.Unlock()
		if len(e.told) != 2*connections {
			return fmt.Errorf("%d of %d: %v", len(e.told), 2*connections, e.errors)
		}
		return nil
	})
	longest := time.Duration(0)
	for name, at := range e.told {
		longest = max(longest, at.Sub(killed))
		if took := at.Sub(killed); took > away+resetWithin || !errors.Is(e.errors[name], syscall.ECONNRESET) {
			t.Errorf("%s: %v after %v, want a reset within %v of another dataplane, which came after %v", name, e.errors[name], took, resetWithin, away)
		}
	}
	t.Logf("another dataplane after %v; %d ends of connections were told within %v", away, len(e.told), longest)
}
