package gateway

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"testing"

	"vswitch/internal/wire"
)

// What kube-proxy answers at a healthCheckNodePort: status, header and JSON.
func TestHealthCheck(t *testing.T) {
	g := newTestGateway(t, onHost)
	port := freePort(t)
	get := func() (status int, weight string, local float64) {
		t.Helper()
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get(fmt.Sprintf("http://%v/healthz", netip.AddrPortFrom(hostA, port)))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		var answer map[string]any
		if err := json.Unmarshal(body, &answer); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		if s, _ := answer["service"].(map[string]any); s["namespace"] != "default" || s["name"] != "published" || answer["serviceProxyHealthy"] != true {
			t.Errorf("the answer is %s", body)
		}
		if ct := resp.Header.Get("Content-Type"); ct != "application/json" {
			t.Errorf("content type %q", ct)
		}
		local, _ = answer["localEndpoints"].(float64)
		return resp.StatusCode, resp.Header.Get("X-Load-Balancing-Endpoint-Weight"), local
	}
	expect := func(what string, status int, local int) {
		t.Helper()
		if s, w, l := get(); s != status || w != fmt.Sprint(local) || l != float64(local) {
			t.Errorf("%s: %d, weight %s, %v endpoints; want %d, %d", what, s, w, l, status, local)
		}
	}
	endpoint := func(i byte, onNode, ready bool) Endpoint {
		return Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, 1, i}), Port: 8080, ID: uint64(i), Local: onNode, Cluster: true, OnNode: onNode, Ready: ready}
	}
	http1 := published(wire.ProtoTCP, 0)
	http1.PortName, http1.ExternalLocal, http1.HealthCheckNodePort = "http", true, port
	http1.Endpoints = []Endpoint{endpoint(1, true, true), endpoint(2, true, true), endpoint(3, false, true)}
	dns := http1
	dns.PortName, dns.Port, dns.Protocol = "dns", 53, wire.ProtoUDP
	put := func(s Service) {
		t.Helper()
		if err := g.PutService(s); err != nil {
			t.Fatal(err)
		}
	}
	put(http1)
	expect("two of this node, one of another", 200, 2)
	put(dns)
	expect("a second port to the same pods", 200, 2)
	http1.Endpoints = []Endpoint{endpoint(1, true, false), endpoint(3, false, true)}
	dns.Endpoints = http1.Endpoints
	put(http1)
	put(dns)
	expect("one that only finishes, though it takes what comes", 503, 0)
	dns.Endpoints = []Endpoint{endpoint(4, true, true)}
	put(dns)
	expect("one port has one", 200, 1)
	old := port
	port = freePort(t)
	http1.HealthCheckNodePort, dns.HealthCheckNodePort = port, port
	put(http1)
	put(dns)
	expect("at another port", 200, 1)
	if _, err := http.Get(fmt.Sprintf("http://%v/", netip.AddrPortFrom(hostA, old))); !refused(err) {
		t.Errorf("at the old port: %v, want connection refused", err)
	}
	g.DeleteService(http1.ServiceKey)
	expect("with one port gone", 200, 1)
	g.DeleteService(dns.ServiceKey)
	if _, err := http.Get(fmt.Sprintf("http://%v/", netip.AddrPortFrom(hostA, port))); !refused(err) {
		t.Errorf("after the service went: %v, want connection refused", err)
	}
	if len(g.listeners.health) != 0 || len(g.listeners.slots) != 0 {
		t.Error("something is left of it")
	}
}
