package keeper

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Who ends when memory is short. The kernel takes the process with the highest score,
// which is its share of the memory and what its oom_score_adj adds (mm/oom_kill.c,
// oom_badness). A dataplane can be started again by its keeper, and not the other way
// round, and the two are often of one size.

const (
	// victimScore is what a child has more than its keeper, in thousandths of the
	// memory: more than a keeper is larger by on any machine that a node fits on, and
	// little beside what other programs have.
	victimScore = 10
	maxScore    = 1000 // OOM_SCORE_ADJ_MAX, include/uapi/linux/oom.h
)

// OpenScore opens what sets this process's score. A process that is confined can't.
func OpenScore() (*os.File, error) {
	f, err := os.OpenFile("/proc/self/oom_score_adj", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("keeper: the kernel may end it before its dataplane when memory is short: %w", err)
	}
	return f, nil
}

// asVictim has start make a child whose score is higher than this process's own. A child
// inherits the score; to lower its own again to what it was takes no privilege. A child
// whose score could not be raised is started all the same.
func asVictim(score *os.File, start func() error) error {
	if score == nil {
		return start()
	}
	own, err := readScore(score)
	if err == nil {
		err = writeScore(score, min(own+victimScore, maxScore))
	}
	if err != nil {
		return start()
	}
	defer writeScore(score, own)
	return start()
}

func readScore(score *os.File) (int, error) {
	b := make([]byte, len("-1000\n"))
	n, err := score.ReadAt(b, 0)
	if n == 0 {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b[:n])))
}

func writeScore(score *os.File, v int) error {
	_, err := score.WriteAt([]byte(strconv.Itoa(v)), 0)
	return err
}
