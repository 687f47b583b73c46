package resident

import "testing"

func TestTrimLeavesTheProgramRunning(t *testing.T) {
	if err := Trim(); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]bool{
		"00400000-01a2b000 r-xp 00000000 fd:01 1234   /usr/bin/vswitch":   true,
		"01a2b000-01a2c000 r--p 00000000 fd:01 1234   /usr/bin/vswitch":   true,
		"01a2c000-01a2d000 rw-p 00000000 fd:01 1234   /usr/bin/vswitch":   false, // its own pages would be lost
		"7f0000000000-7f0000001000 r-xp 00000000 fd:01 9   /usr/lib/x.so": false,
		"c000000000-c000400000 rw-p 00000000 00:00 0":                     false,
		"": false,
	} {
		if _, _, ok := constant(line, "/usr/bin/vswitch"); ok != want {
			t.Errorf("%q: %v, want %v", line, ok, want)
		}
	}
}
