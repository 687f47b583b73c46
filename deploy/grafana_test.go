package deploy

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
)

// TestTheDashboardAsksForMetricsThatExist, with labels that they have.
func TestTheDashboardAsksForMetricsThatExist(t *testing.T) {
	labels := map[string]string{} // by metric: the cell of docs/metrics.md, which is the program's own
	_, table, _ := strings.Cut(string(readFile(t, "../docs/metrics.md")), "## All metrics")
	for line := range strings.Lines(table) {
		if cells := strings.Split(line, "|"); len(cells) > 4 && strings.HasPrefix(line, "| `vswitch_") {
			name := strings.Trim(cells[1], " `")
			labels[name] = cells[3]
			if strings.TrimSpace(cells[2]) == "histogram" {
				labels[name+"_bucket"] = cells[3] + " `le`"
			}
		}
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct{ Query any }
		}
	}
	if err := json.Unmarshal(readFile(t, "grafana/vswitch.json"), &board); err != nil {
		t.Fatal(err)
	}
	if len(board.Panels) == 0 {
		t.Fatal("no panels")
	}
	metric := regexp.MustCompile(`(vswitch_[a-z_]+)(?:\{([^}]*)\})?`)
	matcher := regexp.MustCompile(`([a-z_]+)(?:=~|=)`)
	grouped := regexp.MustCompile(`by \(([a-z_, ]+)\)`)
	for _, p := range board.Panels {
		for _, q := range p.Targets {
			for _, m := range metric.FindAllStringSubmatch(q.Expr, -1) {
				has, ok := labels[m[1]]
				if !ok {
					t.Errorf("%s: there is no metric %s", p.Title, m[1])
					continue
				}
				asked := matcher.FindAllStringSubmatch(m[2], -1)
				for _, by := range grouped.FindAllStringSubmatch(q.Expr, -1) {
					for _, l := range strings.Split(by[1], ", ") {
						asked = append(asked, []string{"", l})
					}
				}
				for _, l := range asked {
					// Prometheus gives every series the first two.
					if l[1] != "job" && l[1] != "instance" && !strings.Contains(has, "`"+l[1]+"`") {
						t.Errorf("%s: %s has no label %s", p.Title, m[1], l[1])
					}
				}
			}
			if strings.Count(q.Expr, "(") != strings.Count(q.Expr, ")") {
				t.Errorf("%s: %s", p.Title, q.Expr)
			}
		}
	}
}
