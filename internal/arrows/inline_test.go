package arrows

import (
	"os/exec"
	"strings"
	"testing"
)

// inlined are the small functions that run for every frame, some of them several
// times: a call of each would cost more than what it does. The compiler decides by a
// budget, so that a line more can lose it without anybody noticing.
//
// Some are wanted and do not fit, which costs what the benchmarks of their packages
// show: wire.Sum and the lookups themselves, which are calls of their own.
var inlined = map[string][]string{
	"internal/wire": {
		"(*Addr).Is4", "(*Addr).V4", "AddrFrom4", "Fold", "(*Headers).IsEcho", "(*Headers).IsICMPError",
	},
	"internal/offload": {"hasOwnPartial", "nonZero", "wholeUDP", "(*Coalescer).merges"},
	"vswitch/frame": {
		"(*Frame).Reset", "(*Frame).Bytes", "(*Frame).Len", "(*Frame).SetLen", "(*Frame).WithHeadroom", "(*Frame).SpaceWithHeadroom",
		"(*Batch).At", "(*Batch).Len", "(*Batch).Full", "(*Batch).Next", "(*Batch).Keep",
		"GSOType.Kind", "(*VNet).IsGSO", "(*VNet).Decode", "(*VNet).Encode",
	},
	"vswitch/fib": {
		"(*seed).mix", "candidates", "tagOf", "slotOf", "isPassed", "packed.nextHop",
		"(*array4).hash", "(*array4).line", "(*array6).hash", "(*array6).line", "(*slot6).read", "key6Of", "key6.and",
	},
	"vswitch/flow": {"KeyOf", "Key.Reverse", "refOf", "stateWord", "reopens", "(*Hit).Reopens", "(*Table).Warm"},
	"vswitch": {
		"(*worker).lookup", "(*worker).stage", "(*worker).count", "(*counter).add", "(*port).owns",
		"hasFlow", "packetBytes", "checksumPlaced", "isNeighborDiscovery", "isDHCPServer", "isLinkLocal4", "isLinkLocal6", "putPorts",
	},
	"tap":          {"(*Queue).needsSoftware", "transmitReason"},
	"tunnel/vxlan": {"putHeader", "parseHeader"},
}

// mayInline asks the compiler what it may inline of a package.
func mayInline(t *testing.T, pkg string) map[string]bool {
	t.Helper()
	path := module + "/" + pkg
	out, err := exec.Command("go", "build", "-gcflags="+path+"=-m", path).CombinedOutput()
	if err != nil {
		t.Fatalf("go build %s: %v\n%s", path, err, out)
	}
	names := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		if _, name, ok := strings.Cut(line, ": can inline "); ok {
			names[strings.TrimSpace(name)] = true
		}
	}
	return names
}

func TestSmallHotFunctionsAreInlined(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go command here to ask the compiler with")
	}
	for pkg, functions := range inlined {
		t.Run(pkg, func(t *testing.T) {
			names := mayInline(t, pkg)
			if len(names) == 0 {
				t.Fatal("the compiler says nothing about inlining: its flag or its words have changed")
			}
			for _, f := range functions {
				if !names[f] {
					t.Errorf("%s can't be inlined: make it smaller, or strike it off the list and say what that costs", f)
				}
			}
		})
	}
}
