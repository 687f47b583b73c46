package dns

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestResolvConf(t *testing.T) {
	for _, c := range []struct{ name, content, want string }{
		{"servers in order", "nameserver 192.0.2.1\nnameserver 2001:db8::1\n", "[192.0.2.1:53 [2001:db8::1]:53]"},
		{"comments, options and what can't be read", "# x\n; y\nsearch example.com\noptions ndots:5\nnameserver\nnameserver dns.example.com\n\tnameserver\t127.0.0.53  # local\n", "[127.0.0.53:53]"},
		{"a link-local server has a zone", "nameserver fe80::1%eth0\n", "[[fe80::1%eth0]:53]"},
		{"the server itself is left out", "nameserver 10.96.0.10\nnameserver 192.0.2.1\n", "[192.0.2.1:53]"},
		{"nothing", "", "[]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "resolv.conf")
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			got := NewResolvConf(path, nil, []netip.Addr{addr("10.96.0.10")}, slog.New(slog.DiscardHandler)).Servers()
			if fmt.Sprint(got) != c.want {
				t.Errorf("got %v, want %s", got, c.want)
			}
		})
	}
}

func TestResolvConfIsFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(t *testing.T, content string) {
		if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		c := NewResolvConf(path, nil, nil, slog.New(slog.DiscardHandler))
		expect := func(want string) {
			t.Helper()
			if got := fmt.Sprint(c.Servers()); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		expect("[127.0.0.1:53]") // resolv.conf(5)
		write(t, "nameserver 192.0.2.1\n")
		expect("[127.0.0.1:53]")
		time.Sleep(lookInterval)
		expect("[192.0.2.1:53]")
		write(t, "")
		time.Sleep(lookInterval)
		expect("[192.0.2.1:53]") // being written
		write(t, "nameserver 192.0.2.2\n")
		time.Sleep(lookInterval)
		expect("[192.0.2.2:53]")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookInterval)
		expect("[192.0.2.2:53]")
	})
}
