package vswitch

import "testing"

func TestLimiterBurstThenRate(t *testing.T) {
	l := limiter{tokens: answersBurst}
	take := func(tick uint32) (n int) {
		for l.allow(tick) {
			n++
		}
		return n
	}
	for _, step := range []struct {
		tick uint32
		want int
	}{
		{0, answersBurst}, {0, 0}, {5, answersBurst}, {5, 0}, {6, answersPerTick}, {6, 0},
		{1000, answersBurst}, {1001, answersPerTick},
	} {
		if got := take(step.tick); got != step.want {
			t.Errorf("tick %d: %d allowed, want %d", step.tick, got, step.want)
		}
	}
}
