//go:build !race

package node

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"testing"

	"vswitch/internal/fdstore"
	"vswitch/internal/lasting/lastingtest"
	"vswitch/internal/wire"
	"vswitch/vswitch"
	"vswitch/vswitch/affinity"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/gateway"
)

// TestFlowsAreTakenOver is not for the race detector, with which a table lies on the
// heap of its process, where nobody finds it again.
func TestFlowsAreTakenOver(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	var kept fdstore.Memory
	defer kept.Close()
	cfg := flow.Config{Connections: 64}
	first, err := openFlows(&kept, "", cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	tick, err := vswitch.TickNow()
	if err != nil {
		t.Fatal(err)
	}
	k := flow.Key{Src: wire.Addr{15: 1}, Dst: wire.Addr{15: 2}, SrcPort: 3, DstPort: 4, Proto: wire.ProtoTCP}
	if got := first.Insert(&flow.Spec{Orig: k, Reply: k.Reverse()}, wire.SYN, tick); got != flow.Inserted {
		t.Fatal(got)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := openFlows(&kept, "", cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	if second.Len() != 1 {
		t.Errorf("%d connections, want the one", second.Len())
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}

	// What is no table is given up, for one that is kept in its stead.
	if err := kept.Put(flowsName, []int{int(os.Stderr.Fd())}); err != nil {
		t.Fatal(err)
	}
	for _, connections := range []int{0, 0} {
		again, err := openFlows(&kept, "", cfg, log)
		if err != nil {
			t.Fatal(err)
		}
		if again.Len() != connections {
			t.Errorf("%d connections of an empty table", again.Len())
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFlowsOutliveWhoKeepsDescriptors is about the file. What lies there and is no table
// makes way; what another process uses does not.
func TestFlowsOutliveWhoKeepsDescriptors(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	dir := lastingtest.Tmpfs(t)
	path := fileOf(flowsName, dir+"/run", "0123456789abcdef")
	cfg := flow.Config{Connections: 64}
	tick, err := vswitch.TickNow()
	if err != nil {
		t.Fatal(err)
	}
	k := flow.Key{Src: wire.Addr{15: 1}, Dst: wire.Addr{15: 2}, SrcPort: 3, DstPort: 4, Proto: wire.ProtoTCP}
	for round, want := range []int{0, 1, 2, 0} {
		if want == 0 && round > 0 {
			if err := os.WriteFile(path, []byte("no table"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var kept fdstore.Memory // nothing of it is left from the round before
		table, err := openFlows(&kept, path, cfg, log)
		if err != nil {
			t.Fatal(err)
		}
		if table.Len() != want {
			t.Errorf("round %d: %d connections, want %d", round+1, table.Len(), want)
		}
		k.SrcPort++
		if got := table.Insert(&flow.Spec{Orig: k, Reply: k.Reverse()}, wire.SYN, tick); got != flow.Inserted {
			t.Fatal(got)
		}
		if err := errors.Join(table.Close(), kept.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: want a file for this user alone", info, err)
	}

	var kept fdstore.Memory
	defer kept.Close()
	onDisk, err := openFlows(&kept, t.TempDir()+"/flows", cfg, log)
	if err != nil {
		t.Fatalf("on a disk: %v; want a table without a file", err)
	}
	if err := onDisk.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestAffinityIsTakenOver from who keeps descriptors, and from a file.
func TestAffinityIsTakenOver(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	dir := lastingtest.Tmpfs(t)
	client := &affinity.Client{Service: 1, Addr: wire.Addr{15: 1}}
	for _, path := range []string{"", fileOf(affinityName, dir, "0123456789abcdef")} {
		var kept fdstore.Memory
		tick, err := gateway.TickNow()
		if err != nil {
			t.Fatal(err)
		}
		first, err := openAffinity(&kept, path, log)
		if err != nil {
			t.Fatal(err)
		}
		had := first.Choose(client, oneEndpoint{}, tick, 100)
		err = first.Close()
		if path != "" { // the keeper ends as well
			err = errors.Join(err, kept.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		second, err := openAffinity(&kept, path, log)
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := second.Look(client, oneEndpoint{}, tick, 100); !ok || e != had {
			t.Errorf("file %q: %+v, %v, want %+v", path, e, ok, had)
		}
		if err := errors.Join(second.Close(), kept.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

type oneEndpoint struct{}

func (oneEndpoint) Has(flow.Endpoint) bool { return true }
func (oneEndpoint) Random() flow.Endpoint {
	return flow.Endpoint{Addr: wire.Addr{15: 9}, Port: 80, ID: 7}
}
