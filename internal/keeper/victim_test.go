package keeper

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

func scoreOf(t *testing.T, pid string) int {
	t.Helper()
	text, err := os.ReadFile("/proc/" + pid + "/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAChildEndsBeforeItsKeeper(t *testing.T) {
	score, err := OpenScore()
	if err != nil {
		t.Fatal(err)
	}
	defer score.Close()
	own := scoreOf(t, "self")
	cmd := exec.Command("cat") // stays until its input ends
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := asVictim(score, cmd.Start); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	if got, want := scoreOf(t, strconv.Itoa(cmd.Process.Pid)), min(own+victimScore, maxScore); got != want {
		t.Errorf("oom_score_adj of the child is %d, want %d", got, want)
	}
	if got := scoreOf(t, "self"); got != own {
		t.Errorf("oom_score_adj of the keeper is %d, want %d as before", got, own)
	}
}

func TestAChildIsStartedWhateverComesOfItsScore(t *testing.T) {
	null, err := os.Open(os.DevNull) // empty, and not to be written to
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	want := errors.New("started")
	for _, score := range []*os.File{nil, null} {
		if err := asVictim(score, func() error { return want }); err != want {
			t.Errorf("%v, want what start returned", err)
		}
	}
}
