package netif

import (
	"strings"
	"testing"
)

// A sysctl that nobody may write stands in for a read-only /proc/sys.
const constantSysctl = "/proc/sys/kernel/ostype"

func TestSysctlThatIsRightIsNotWritten(t *testing.T) {
	if err := SetSysctl(constantSysctl, "Linux"); err != nil {
		t.Error(err)
	}
}

func TestSysctlThatCannotBeSetSaysWhatItIs(t *testing.T) {
	for path, says := range map[string]string{
		constantSysctl:                    `"Linux"`,
		"/proc/sys/kernel/no_such_sysctl": "no_such_sysctl: no such file",
	} {
		err := SetSysctl(path, "Plan9")
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "Plan9") {
			t.Errorf("got %v, want it to name %s, the value wanted, and say %s", err, path, says)
		}
	}
}
