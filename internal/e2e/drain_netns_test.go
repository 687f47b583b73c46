package e2e

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"vswitch/internal/lab"
)

// TestADaemonDrainsBeforeItEnds tells node a's daemon to stop, and to go on in another
// process, while connections end in it: they go on until they are done, and only then
// it ends.
func TestADaemonDrainsBeforeItEnds(t *testing.T) {
	c := newCluster(t, "--drain-timeout", "50s")
	outside, err := c.lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	near := c.pod(0, "near", map[string]string{"app": "waits"})
	echo(t, near, 7)
	echo(t, &lab.Pod{Namespace: outside.Namespace}, 7)
	c.apply(crashServices)
	node := c.nodes[0]
	entrance := netip.AddrPortFrom(node.Underlay4, c.service("entered").nodePort(t, ""))
	// open makes a connection each way.
	open := func() (conns []net.Conn) {
		t.Helper()
		for from, to := range map[*lab.Namespace]netip.AddrPort{
			outside.Namespace: entrance, c.a1.Namespace: netip.AddrPortFrom(outside.Underlay4, 7),
		} {
			var conn net.Conn
			c.eventually("a connection", func() (err error) {
				if conn, err = dial(from, "tcp", netip.AddrPort{}, to); err == nil {
					err = echoes(conn, "first")
				}
				return err
			})
			t.Cleanup(func() { conn.Close() })
			conns = append(conns, conn)
		}
		return conns
	}
	finish := func(conns []net.Conn) {
		t.Helper()
		for _, conn := range conns {
			if err := echoes(conn, "while it drains"); err != nil {
				t.Error(err)
			}
			conn.Close()
		}
	}

	conns := open()
	before, err := node.Dataplane()
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Daemon().Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	drains := func(times int) {
		t.Helper()
		c.eventually("it drains", func() error {
			if strings.Count(node.Daemon().Log(), "msg=draining") < times {
				return errors.New("not yet")
			}
			return nil
		})
	}
	drains(1)
	// Who comes meanwhile waits for the next one.
	late := make(chan error, 1)
	go func() {
		conn, err := dial(outside.Namespace, "tcp", netip.AddrPort{}, entrance)
		if err == nil {
			err = echoes(conn, "late")
			conn.Close()
		}
		late <- err
	}()
	finish(conns)
	c.eventually("another dataplane", func() error {
		pid, err := node.Dataplane()
		if err == nil && pid == before {
			err = errors.New("the same")
		}
		return err
	})
	if err := <-late; err != nil {
		t.Errorf("a client that came while it drained: %v", err)
	}

	conns = open()
	began := time.Now()
	stopped := make(chan error, 1)
	if err := node.Daemon().Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	drains(2)
	c.eventually("clients are refused", func() error {
		conn, err := dial(outside.Namespace, "tcp", netip.AddrPort{}, entrance)
		if err == nil {
			conn.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return errors.Join(errors.New("want connection refused"), err)
		}
		return nil
	})
	if err := ping(c.a1, c.b1.IPv4, 1); err != nil {
		t.Errorf("forwarding while it drains: %v", err)
	}
	finish(conns)
	go func() { stopped <- node.Daemon().Wait(t.Context()) }()
	select {
	case err := <-stopped:
		if err != nil || time.Since(began) > 40*time.Second {
			t.Errorf("it ended with %v after %v", err, time.Since(began))
		}
	case <-time.After(patience):
		t.Error("it has not ended")
	}
}
