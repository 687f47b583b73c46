package bench

import (
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"vswitch/internal/traffic"
)

const sockperfOutput = "sockperf: \x1b[2;35m====> avg-rtt=17.601 (std-dev=18.738)\x1b[0m\n" +
	"sockperf: # dropped messages = 0; # duplicated messages = 0; # out-of-order messages = 0\n" +
	"sockperf: ---> <MAX> observation = 1586.440\n" +
	"sockperf: ---> percentile 99.999 = 1586.440\nsockperf: ---> percentile 99.900 =  145.565\n" +
	"sockperf: ---> percentile 99.000 =   79.357\nsockperf: ---> percentile 90.000 =   16.504\nsockperf: ---> percentile 50.000 =   14.501\n"

func TestSockperfOutputBecomesFiguresOrAnError(t *testing.T) {
	m, err := parseSockperf(sockperfOutput)
	want := map[string]float64{"p50": 14.501, "p90": 16.504, "p99": 79.357, "p99.9": 145.565, "p99.999": 1586.440}
	if err != nil || !maps.Equal(m.figures, want) {
		t.Errorf("%v, %v; want %v", m.figures, err, want)
	}
	for name, out := range map[string]string{
		"nothing":          "",
		"a lost message":   strings.Replace(sockperfOutput, "dropped messages = 0", "dropped messages = 2", 1),
		"no word of loss":  strings.Replace(sockperfOutput, "dropped", "other", 1),
		"no tail":          strings.Replace(sockperfOutput, "percentile 99.900", "percentile 98.900", 1),
		"a time of zero":   strings.Replace(sockperfOutput, "14.501", "0.000", 1),
		"a server missing": "sockperf: ERROR: _seqN > m_maxSequenceNo\n",
	} {
		if m, err := parseSockperf(out); err == nil {
			t.Errorf("%s: %v and no error", name, m.figures)
		}
	}
}

func TestBenchmarkOutputBecomesFiguresOrAnError(t *testing.T) {
	const out = `goos: linux
BenchmarkLookupMillionHosts/IPv4/hit-2         	17216030	        66.13 ns/op	        15.12 Mlookups/s
BenchmarkLookupMillionHosts/IPv4/hit-under-100k-changes-per-s-2 	19185855	 56.16 ns/op	 17.81 Mlookups/s	 90866 changes/s
PASS
`
	for name, want := range map[string]float64{"LookupMillionHosts/IPv4/hit": 15.12, "LookupMillionHosts/IPv4/hit-under-100k-changes-per-s": 17.81} {
		if m, err := parseBenchmark(out, name); err != nil || m.figures["Mlookups/s"] != want || m.figures["ns/op"] == 0 {
			t.Errorf("%s: %v, %v; want %v", name, m.figures, err, want)
		}
	}
	for _, bad := range []string{"", "PASS\n", "BenchmarkX-2  \t 3 ns/op\n", "BenchmarkX-2 1 2\n", "BenchmarkX-2 1 fast Mlookups/s\n", strings.Repeat("BenchmarkX-2 1 2 Mlookups/s\n", 2)} {
		if m, err := parseBenchmark(bad, "X"); err == nil {
			t.Errorf("%q: %v and no error", bad, m.figures)
		}
	}
	if got, want := benchmarkPattern("A/b.c"), `^BenchmarkA$/^b\.c$`; got != want {
		t.Errorf("pattern %s, want %s", got, want)
	}
}

func TestFloodIsWhatArrived(t *testing.T) {
	sent := &traffic.Bulk{Sent: 5000}
	got := &traffic.Bulk{Bytes: 64 * 2000, Elapsed: time.Second / 2, BitsPerSecond: 64 * 2000 * 8 * 2}
	if m, err := arrived(got, sent, 64, true); err != nil || m.figures["rate"] != 4 || m.bytes != 128000 {
		t.Errorf("rate: %+v, %v; want 4 kpkt/s", m, err)
	}
	got.BitsPerSecond = 3e9
	if m, err := arrived(got, sent, 64, false); err != nil || m.figures["throughput"] != 3 {
		t.Errorf("throughput: %+v, %v; want 3 Gb/s", m, err)
	}
	if m, err := arrived(&traffic.Bulk{Elapsed: 1}, sent, 64, true); err == nil {
		t.Errorf("nothing arrived: %+v and no error", m)
	}
	r, err := sinkReport("serving on [::]:5201\n{\"bulk\":{\"bytes\":7}}\n")
	if err != nil || r.Bulk.Bytes != 7 {
		t.Errorf("%+v, %v", r, err)
	}
	for _, log := range []string{"", "serving on x\n", "{\n", "{}\n"} {
		if r, err := sinkReport(log); err == nil {
			t.Errorf("%q: %+v and no error", log, r)
		}
	}
}

func TestIdleReadsThisVeryProcess(t *testing.T) {
	before, err := runTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Millisecond); time.Now().Before(end); {
	}
	after, err := runTime(os.Getpid())
	if err != nil || after <= before {
		t.Errorf("20 ms of work took %v to %v of CPU time, %v", before, after, err)
	}
	if r, err := residentBytes(os.Getpid()); err != nil || r < 1<<20 {
		t.Errorf("%d bytes resident, %v", r, err)
	}
	if pid, ppid, err := parseStat("42 (a) b (c) S 7 42 42 0"); err != nil || pid != 42 || ppid != 7 {
		t.Errorf("%d of %d, %v; want 42 of 7", pid, ppid, err)
	}
	for _, bad := range []string{"", "42 S 7", "x (a) S 7", "42 (a)"} {
		if _, _, err := parseStat(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestVersionsOfPackagesThatAreThere(t *testing.T) {
	got := parseVersions("iperf3 3.12-1\npasst \nnftables 1.0.6-2+deb12u2\n")
	if want := map[string]string{"iperf3": "3.12-1", "nftables": "1.0.6-2+deb12u2"}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
