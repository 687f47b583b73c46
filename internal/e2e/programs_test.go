package e2e

import (
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"testing"

	"vswitch/internal/lab"
)

// listening is what iperf3's server says when it is ready.
var listening = regexp.MustCompile(`Server listening`)

// serveFiles serves a directory over HTTP on a namespace's address.
func serveFiles(t *testing.T, ns *lab.Namespace, addr netip.AddrPort, dir string) {
	t.Helper()
	var ln net.Listener
	if err := ns.Do(func() (err error) { ln, err = net.Listen("tcp", addr.String()); return err }); err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.FileServer(http.Dir(dir))}
	t.Cleanup(func() { srv.Close() })
	go srv.Serve(ln)
}
