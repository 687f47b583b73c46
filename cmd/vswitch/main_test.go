package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/rootless"
	"vswitch/internal/rootless/dataplane"
)

// run is the command as typed, with what it printed.
func run(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetIn(strings.NewReader(stdin))
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

// fakeDaemon answers with what the test put there, and remembers what it was asked.
type fakeDaemon struct {
	apiv1.UnimplementedNodeServer
	rows     map[string][]string
	applied  []string
	deleted  []string
	asked    func() // before each answer to Get
	captured *apiv1.CaptureRequest
	traced   string
}

// Get answers in replies of three rows, the first of them empty.
func (f *fakeDaemon) Get(r *apiv1.GetRequest, stream apiv1.Node_GetServer) error {
	if f.asked != nil {
		f.asked()
	}
	reply := &apiv1.GetReply{}
	for i, row := range f.rows[r.Kind] {
		if i%3 == 0 {
			if err := stream.Send(reply); err != nil {
				return err
			}
			reply = &apiv1.GetReply{}
		}
		reply.Rows = append(reply.Rows, []byte(row))
	}
	return stream.Send(reply)
}

// rowsOf are rows as a daemon's.
func rowsOf(rows [][]byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, r := range rows {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func (f *fakeDaemon) Apply(_ context.Context, r *apiv1.ApplyRequest) (*apiv1.ApplyReply, error) {
	reply := &apiv1.ApplyReply{}
	for _, d := range r.Documents {
		f.applied = append(f.applied, string(d))
		reply.Results = append(reply.Results, &apiv1.ObjectResult{Kind: "Service", Namespace: "default", Name: "web", Change: apiv1.Change_CHANGE_CREATED})
	}
	return reply, nil
}

func (f *fakeDaemon) Delete(_ context.Context, r *apiv1.DeleteRequest) (*apiv1.DeleteReply, error) {
	if r.Name == "missing" {
		return nil, status.Error(codes.NotFound, "Service default/missing: not found")
	}
	f.deleted = append(f.deleted, fmt.Sprint(r.Kind, " ", r.Namespace, "/", r.Name))
	return &apiv1.DeleteReply{}, nil
}

func (f *fakeDaemon) Version(context.Context, *apiv1.VersionRequest) (*apiv1.VersionReply, error) {
	return &apiv1.VersionReply{Version: "v9", GoVersion: "go1", Node: "a", Pid: 7}, nil
}

// serve puts f on a socket.
func serve(t *testing.T, f *fakeDaemon) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "v.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	apiv1.RegisterNodeServer(s, f)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return socket
}

func TestGetPrintsTables(t *testing.T) {
	f := &fakeDaemon{rows: map[string][]string{
		"nodes":     {`{"name":"a","podCIDRs":["10.244.0.0/24","fd00::/64"],"underlay":"192.0.2.1","udpPorts":[8472,8473],"vni":1,"vtepMAC":"02:00:00:00:00:01","trains":"unchecked","ready":true}`},
		"services":  {`{"name":"web","namespace":"default","type":"NodePort","clusterIPs":["10.96.0.1"],"externalAddresses":["198.51.100.1","198.51.100.2"],"ports":[{"port":80,"nodePort":30080,"protocol":"TCP"},{"port":53,"protocol":"UDP"}]}`},
		"endpoints": {`{"name":"web","namespace":"default","addressType":"IPv4","ports":[{"port":8080,"protocol":"TCP"}],"endpoints":[{"addresses":["10.244.0.2"],"conditions":{"ready":true},"takesNew":["Cluster"]},{"addresses":["10.244.0.3"],"conditions":{"ready":false},"takesNew":[]}]}`},
		"drops":     {`{"name":"spoofed-ip","pod":"default/p","node":"a","count":12345678901}`},
		"pods":      nil,
	}}
	socket := serve(t, f)
	tests := map[string]string{
		"nodes": "NAME  READY  POD CIDRS                UNDERLAY   UDP PORTS  VNI  VTEP MAC           TRAINS\n" +
			"a     true   10.244.0.0/24,fd00::/64  192.0.2.1  8472,8473  1    02:00:00:00:00:01  unchecked\n",
		"services": "NAMESPACE  NAME  TYPE      CLUSTER IPS  EXTERNAL IPS               PORTS\n" +
			"default    web   NodePort  10.96.0.1    198.51.100.1,198.51.100.2  80:30080/TCP,53/UDP\n",
		"endpoints": "NAMESPACE  NAME  TYPE  PORTS     ENDPOINTS\n" +
			"default    web   IPv4  8080/TCP  10.244.0.2,10.244.0.3(not serving new)\n",
		"drops": "REASON      POD        NODE  PORT  COUNT\n" +
			"spoofed-ip  default/p  a     -     12345678901\n",
		"pods": "NAMESPACE  NAME  NODE  IPS  MAC  CONTAINER  STATE\n",
	}
	for kind, want := range tests {
		got, err := run(t, "", "get", kind, "--socket", socket)
		if err != nil || got != want {
			t.Errorf("get %s: %v\n%s\nwant\n%s", kind, err, got, want)
		}
	}
}

func TestGetPrintsJSONAndYAML(t *testing.T) {
	f := &fakeDaemon{rows: map[string][]string{"drops": {`{"name":"no-route","pod":"","node":"a","count":1}`, `{"name":"too-big","pod":"","node":"a","count":2}`}}}
	socket := serve(t, f)
	out, err := run(t, "", "get", "drops", "-o", "json", "--socket", socket)
	if err != nil {
		t.Fatal(err)
	}
	var rows []struct {
		Name  string
		Count int
	}
	if err := json.Unmarshal([]byte(out), &rows); err != nil || len(rows) != 2 || rows[1].Name != "too-big" || rows[1].Count != 2 {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := run(t, "", "get", "pods", "-o", "json", "--socket", socket); err != nil || strings.TrimSpace(out) != "[]" {
		t.Errorf("nothing as JSON: %q, %v", out, err)
	}
	out, err = run(t, "", "get", "drops", "-o", "yaml", "--socket", socket)
	if err != nil || !strings.Contains(out, "- count: 1\n  name: no-route\n") {
		t.Errorf("%v: %s", err, out)
	}
}

// A list that is longer than what is aligned together is whole, with its titles once.
func TestGetPrintsLongLists(t *testing.T) {
	const n = 2*maxAligned + 5
	f := &fakeDaemon{rows: map[string][]string{}}
	for i := range n {
		f.rows["routes"] = append(f.rows["routes"], fmt.Sprintf(`{"destination":"10.0.%d.%d/32","kind":"port","via":"p%d"}`, i/250, i%250, i))
	}
	out, err := run(t, "", "get", "routes", "--socket", serve(t, f))
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err != nil || len(lines) != n+1 || strings.Count(out, "DESTINATION") != 1 {
		t.Fatalf("%d lines of %d routes, %v", len(lines), n, err)
	}
	for i, line := range lines[1:] {
		if fields := strings.Fields(line); len(fields) != 3 || fields[2] != fmt.Sprintf("p%d", i) {
			t.Fatalf("line %d: %q", i, line)
		}
	}
}

const objects = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: missing, namespace: other}
spec: {selector: {app: web}, ports: [{port: 80}]}
`

func TestApplySendsEveryDocument(t *testing.T) {
	f := &fakeDaemon{}
	socket := serve(t, f)
	file := filepath.Join(t.TempDir(), "web.yaml")
	if err := os.WriteFile(file, []byte(objects), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ stdin, file string }{{"", file}, {objects, "-"}} {
		f.applied = nil
		out, err := run(t, tt.stdin, "apply", "-f", tt.file, "--socket", socket)
		if err != nil || out != "service/web created\nservice/web created\n" || len(f.applied) != 2 {
			t.Errorf("-f %s: %v, said %q, sent %v", tt.file, err, out, f.applied)
		}
	}
}

func TestDelete(t *testing.T) {
	f := &fakeDaemon{}
	socket := serve(t, f)
	out, err := run(t, "", "delete", "service", "web", "-n", "other", "--socket", socket)
	if err != nil || out != "service/web deleted\n" || f.deleted[0] != "service other/web" {
		t.Errorf("%v, said %q, asked %v", err, out, f.deleted)
	}
	f.deleted = nil
	out, err = run(t, objects, "delete", "-f", "-", "--socket", socket)
	if out != "service/web deleted\n" || len(f.deleted) != 1 || err == nil || err.Error() != "Service default/missing: not found" {
		t.Errorf("%v, said %q, asked %v; want one deleted and the other's error, bare", err, out, f.deleted)
	}
}

func TestVersionWithAndWithoutDaemon(t *testing.T) {
	socket := serve(t, &fakeDaemon{})
	if out, err := run(t, "", "version", "--socket", socket); err != nil || !strings.Contains(out, "daemon v9 go1, node a, pid 7") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := run(t, "", "version", "--socket", socket+".none"); err != nil || !strings.Contains(out, "no daemon listens") || !strings.HasPrefix(out, "vswitch ") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestBadCommandLines(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.sock")
	file := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(file, []byte("apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {prots: []}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args []string
		want []string
	}{
		{[]string{"frobnicate"}, []string{`unknown command "frobnicate"`}},
		{[]string{"run", "extra"}, []string{`unknown command "extra"`}},
		{[]string{"run", "--udp-port", "0"}, []string{"--udp-port", `"0"`, "1 to 65535"}},
		{[]string{"run", "--listen-client", "http://192.0.2.1:2379"}, []string{"--listen-client http://192.0.2.1:2379", "--insecure"}},
		{[]string{"get"}, []string{"want one of nodes, pods"}},
		{[]string{"get", "widgets"}, []string{"get widgets", "want one of nodes, pods", "listeners,", "upkeep or processes"}},
		{[]string{"get", "nodes", "pods"}, []string{"get nodes pods", "want one of"}},
		{[]string{"get", "nodes", "-o", "xml"}, []string{`-o "xml"`, "table, json or yaml"}},
		{[]string{"get", "nodes", "--socket", none}, []string{"--socket " + none, "no daemon listens there", "vswitch run"}},
		{[]string{"apply"}, []string{"no -f FILE"}},
		{[]string{"capture", "-c", "-3"}, []string{`"-3"`, "--count", "flag: want a whole number, 0 or more"}},
		{[]string{"capture", "-c", "99999999999999999999"}, []string{"--count", "flag: want a smaller number"}},
		{[]string{"capture", "--tunnel=x"}, []string{`"x"`, "--tunnel", "flag: want true or false"}},
		{[]string{"capture", "--duration", "5"}, []string{`"5"`, "--duration", "flag: want a time such as 30s or 2m"}},
		{[]string{"ready", "--wait", "x"}, []string{`"x"`, "--wait", "flag: want a time such as 30s or 2m"}},
		{[]string{"apply", "-f", "/nonexistent.yaml"}, []string{"-f /nonexistent.yaml", "no such file"}},
		{[]string{"apply", "-f", file}, []string{"-f " + file, "prots"}},
		{[]string{"delete"}, []string{"want -f FILE, or KIND NAME"}},
		{[]string{"delete", "service"}, []string{"1 arguments", "want -f FILE, or KIND NAME"}},
		{[]string{"delete", "-f", file, "service", "web"}, []string{"want -f FILE, or KIND NAME"}},
	}
	for _, tt := range tests {
		_, err := run(t, "", tt.args...)
		if err == nil {
			t.Errorf("%v: no error", tt.args)
			continue
		}
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%v: message %q lacks %q", tt.args, err, w)
			}
		}
	}
}

// What vswitch itself has to say of a command that it never began has an exit code
// that commands don't have.
func TestRootlessRunRefusesBadCommandLines(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "want a command, such as: vswitch rootless run -- bash"},
		{[]string{"--"}, "want a command"},
		{[]string{"--nosuch", "--", "true"}, "unknown flag: --nosuch"},
		{[]string{"--workers", "x", "--", "true"}, `invalid argument "x" for "--workers" flag: want a whole number`},
		{[]string{"--mtu", "15", "--", "true"}, "MTU 15: want 1280 to 65521"},
		{[]string{"--cidr", "x", "--", "true"}, "--cidr x: want a network such as 10.0.2.0/24"},
		{[]string{"--cidr", "10.0.2.0/31", "--", "true"}, "--cidr: 10.0.2.0/31: want a network of /25 or larger"},
		{[]string{"--dns-upstream", "x", "--", "true"}, "--dns-upstream x: want ADDR[:PORT]"},
		{[]string{"--publish-address", "x", "--", "true"}, "--publish-address x: want an address of this host"},
		{[]string{"--publish", "99999:80", "--", "true"}, `--publish 99999:80: port "99999": want 1 to 65535`},
	} {
		_, err := run(t, "", append([]string{"rootless", "run"}, tt.args...)...)
		var exit *rootless.ExitError
		if !errors.As(err, &exit) || exit.Code != 125 || !strings.Contains(exit.Text, tt.want) {
			t.Errorf("%v: %#v, want exit code 125 and %q", tt.args, err, tt.want)
		}
	}
}

func TestAddressesToPublishAtThatNoInterfaceHas(t *testing.T) {
	addrs := func(all ...string) (as []netip.Addr) {
		for _, a := range all {
			as = append(as, netip.MustParseAddr(a))
		}
		return as
	}
	p := dataplane.Publish{
		At:    addrs("127.0.0.1", "127.0.0.9", "203.0.113.7", "::1"),
		Ports: []dataplane.Port{{Port: 80}, {Host: netip.IPv4Unspecified(), Port: 80}, {Host: netip.MustParseAddr("2001:db8::9"), Port: 80}},
	}
	if got, want := absent(p), addrs("203.0.113.7", "2001:db8::9"); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestHelpHidesTheStoreAndShowsTheRest(t *testing.T) {
	out, err := run(t, "", "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"run", "apply", "delete", "get", "version", "completion"} {
		if !strings.Contains(out, "\n  "+name+" ") {
			t.Errorf("help lacks %s:\n%s", name, out)
		}
	}
	if strings.Contains(out, "\n  store ") {
		t.Errorf("help shows store:\n%s", out)
	}
}

func TestCompletionKnowsTheKinds(t *testing.T) {
	out, err := run(t, "", "__complete", "get", "")
	if err != nil || !strings.Contains(out, "nodes\n") || !strings.Contains(out, "drops\n") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = run(t, "", "__complete", "get", "nodes", "-o", "")
	if err != nil || !strings.Contains(out, "table\njson\nyaml\n") {
		t.Errorf("formats: %v: %s", err, out)
	}
}

// Where there is no socket none is made up, such as the directory one is in.
func TestAnEmptySocketIsRefused(t *testing.T) {
	for _, args := range [][]string{
		{"get", "pods"}, {"install-cni"}, {"attend", "--once"}, {"ready", "--own"}, {"host", "attach"},
	} {
		if out, err := run(t, "", append(args, "--socket", "")...); err == nil || !strings.Contains(err.Error(), "want --socket PATH") {
			t.Errorf("%s: %v, %q", args[0], err, out)
		}
	}
}
