//go:build !race

package node

import (
	"io"
	"log/slog"
	"os"
	"testing"

	"vswitch/internal/fdstore"
	"vswitch/internal/wire"
	"vswitch/vswitch"
	"vswitch/vswitch/flow"
)

// TestFlowsAreTakenOver is not for the race detector, with which a table lies on the
// heap of its process, where nobody finds it again.
func TestFlowsAreTakenOver(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	var kept fdstore.Memory
	defer kept.Close()
	cfg := flow.Config{Connections: 64}
	first, err := openFlows(&kept, cfg, log)
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
	second, err := openFlows(&kept, cfg, log)
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
		again, err := openFlows(&kept, cfg, log)
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
