package main

import (
	"strings"
	"testing"
)

func TestSummary(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   string
		want []string
		ok   bool
	}{
		{
			name: "a pass and a skip with its reason",
			in: `{"Action":"pass","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"B","Output":"    b_test.go:3: needs root\n"}
{"Action":"skip","Package":"p","Test":"B"}
{"Action":"pass","Package":"p","Elapsed":1.5}`,
			want: []string{"ok    p (1.5s)", "p B: b_test.go:3: needs root", "1 tests passed, 0 failed, 1 skipped in 1 packages"},
			ok:   true,
		},
		{
			name: "a failure with all it said",
			in: `{"Action":"output","Package":"p","Test":"A","Output":"boom\n"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p"}`,
			want: []string{"FAIL  p A", "boom", "failed: p"},
		},
		{
			name: "a package that does not build",
			in: `{"Action":"pass","Package":"q","Test":"A"}
{"ImportPath":"p","Action":"build-output","Output":"undefined: x\n"}
{"ImportPath":"p","Action":"build-fail"}
{"Action":"fail","Package":"p"}`,
			want: []string{"p does not build", "undefined: x"},
		},
		{
			name: "a test that never ended",
			in: `{"Action":"pass","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"B","Output":"panic: test timed out\n"}
{"Action":"fail","Package":"p"}`,
			want: []string{"p B did not end", "panic: test timed out"},
		},
		{
			name: "a long test says how far it is",
			in: `{"Action":"output","Package":"p","Test":"A","Output":"    a_test.go:3: progress: half way\n"}
{"Action":"pass","Package":"p","Test":"A"}`,
			want: []string{"half way\n", "1 tests passed"},
			ok:   true,
		},
		{name: "no test at all", in: "", want: []string{"0 tests passed"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			s := &summary{w: &out, output: map[string]*strings.Builder{}}
			if err := s.read(strings.NewReader(tt.in)); err != nil {
				t.Fatal(err)
			}
			if ok := s.finish(); ok != tt.ok {
				t.Errorf("finish: %t, want %t", ok, tt.ok)
			}
			for _, w := range tt.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("%q is not in\n%s", w, out.String())
				}
			}
		})
	}
}
