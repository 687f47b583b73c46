package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is what a result depends on beside the code.
type Machine struct {
	CPU         string            `json:"cpu"`
	Cores       int               `json:"cores"`
	MemoryBytes uint64            `json:"memoryBytes"`
	Kernel      string            `json:"kernel"`
	Go          string            `json:"go"`
	Commit      string            `json:"commit"`
	Started     time.Time         `json:"started"`
	LoadAverage string            `json:"loadAverage"` // before the run: a busy machine measures itself
	Versions    map[string]string `json:"versions"`    // of the programs used
}

// Describe reads the machine's description; what can't be read stays empty.
func Describe(ctx context.Context, commit string) Machine {
	m := Machine{
		Cores: runtime.NumCPU(), Go: runtime.Version(), Commit: commit, Started: time.Now().UTC().Truncate(time.Second),
		CPU: runtime.GOARCH,
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if f := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(b); f != nil {
			m.CPU = string(f[1])
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		m.MemoryBytes = uint64(si.Totalram) * uint64(si.Unit)
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.LoadAverage = strings.Join(strings.Fields(string(b))[:3], " ")
	}
	m.Versions = packageVersions(ctx)
	return m
}

// packages are Debian's, of the programs used: what `make bench-deps` installs.
var packages = []string{"iperf3", "sockperf", "openvswitch-switch", "passt", "slirp4netns", "nftables"}

// packageVersions asks for the packages' versions; not every program knows its own.
func packageVersions(ctx context.Context) map[string]string {
	// An error is one of a package that isn't there; the others are printed all the same.
	out, _ := exec.CommandContext(ctx, "dpkg-query", append([]string{"-W", "-f", "${Package} ${Version}\n"}, packages...)...).Output()
	return parseVersions(string(out))
}

func parseVersions(out string) map[string]string {
	v := map[string]string{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 2 {
			v[f[0]] = f[1]
		}
	}
	return v
}

// ticksPerSecond is USER_HZ, 100 on every architecture Go supports on Linux.
const ticksPerSecond = 100

// busyCPU is the time all CPUs have spent not idle since boot.
func busyCPU() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("CPU time: %w", err)
	}
	return parseBusyCPU(string(b))
}

// parseBusyCPU reads the first line of /proc/stat (proc(5)): user nice system
// idle iowait irq softirq steal guest guest_nice; guest time is in user already.
func parseBusyCPU(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	if len(f) < 8 || f[0] != "cpu" {
		return 0, fmt.Errorf("CPU time: /proc/stat begins with %q", line)
	}
	ticks := uint64(0)
	for _, i := range []int{1, 2, 3, 6, 7} { // user nice system irq softirq
		n, err := strconv.ParseUint(f[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("CPU time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond, nil
}
